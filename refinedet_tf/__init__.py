"""RefineDet, the single-shot refinement detector (CVPR 2018), for TensorFlow and Keras.

`__init__.pyi` lists the public names. Each is imported on first use, so that `import refinedet_tf` and the help texts
of the commands do not wait for TensorFlow.
"""

import lazy_loader

from refinedet_tf.registration import register_on_demand

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.2.0"

register_on_demand()
