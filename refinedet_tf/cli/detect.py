"""Detects objects in images and writes pictures with labeled boxes and result files.

refinedet detect --model=saved_model/1 --input=photos --output_dir=detections --format=json,coco
"""

from absl import flags

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "A .keras file, a SavedModel folder, a .tflite file or the work folder of a "
                        "training run.", required=True)  # fmt: skip
    flags.DEFINE_multi_string("input", None, "An image, a folder (searched with its sub-folders) or a pattern such as "
                              "'photos/**/*.jpg'. Repeatable.", required=True)  # fmt: skip
    flags.DEFINE_string("output_dir", None, "The folder for the pictures and the results.", required=True)
    flags.DEFINE_list("format", ["json"], "Result files, separated by commas: json, coco, csv, yolo, voc.")
    flags.DEFINE_float("score_threshold", 0.5, "The lowest score to report.", 0.0, 1.0)
    flags.DEFINE_list("only", None, "The classes to report, separated by commas; all by default.")
    flags.DEFINE_integer("max_boxes", None, "The most objects to report in an image, the best ones.", lower_bound=1)
    flags.DEFINE_bool("labels", True, "Write class names and scores on the pictures.")
    flags.DEFINE_bool("crops", False, "Write each object as an image of its own, below crops/.")
    flags.DEFINE_string("gallery", None, "A PNG file for the first 12 pictures side by side.")


def main() -> None:
    """Detects in every image and writes the results."""
    from refinedet_tf.inference.detector import Detector
    from refinedet_tf.inference.files import Selection, detect_files, find_images

    images = find_images(FLAGS.input)
    summary = detect_files(
        Detector.load(FLAGS.model),
        images,
        FLAGS.output_dir,
        selection=Selection(FLAGS.score_threshold, FLAGS.only, FLAGS.max_boxes),
        formats=FLAGS.format,
        labels=FLAGS.labels,
        crops=FLAGS.crops,
        gallery=FLAGS.gallery,
        model_name=FLAGS.model,
    )
    for reason in summary.skipped:
        print(f"skipped: {reason}")
    print(f"{summary.objects} objects in {summary.images} images ({len(summary.skipped)} skipped): {FLAGS.output_dir}")
