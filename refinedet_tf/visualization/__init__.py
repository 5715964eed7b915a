"""Boxes on images, galleries of images, and the curves of a training run.

`curves` is imported where it is needed: it alone needs Matplotlib.
"""

from refinedet_tf.visualization.drawing import class_color, draw_detections
from refinedet_tf.visualization.galleries import save_gallery

__all__ = ["class_color", "draw_detections", "save_gallery"]
