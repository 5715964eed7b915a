"""Detects objects in images and videos and writes pictures with labeled boxes and result files.

refinedet detect --model=saved_model/1 --input=photos --output_dir=detections --format=json,coco
refinedet detect --model=saved_model/1 --input=clip.mp4 --output_dir=detections
"""

from absl import flags

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("model", None, "A .keras file, the name of a pretrained model, a SavedModel folder, a .tflite "
                        "file or the work folder of a training run.", required=True)  # fmt: skip
    flags.DEFINE_multi_string("input", None, "An image, a folder (searched with its sub-folders), a pattern such as "
                              "'photos/**/*.jpg', a video, the number of a camera or the address of a stream. "
                              "Repeatable.", required=True)  # fmt: skip
    flags.DEFINE_string("output_dir", None, "The folder for the pictures and the results.", required=True)
    flags.DEFINE_list("format", ["json"], "Result files for images, separated by commas: json, coco, csv, yolo, voc.")
    flags.DEFINE_float("score_threshold", 0.5, "The lowest score to report.", 0.0, 1.0)
    flags.DEFINE_list("only", None, "The classes to report, separated by commas; all by default.")
    flags.DEFINE_integer("max_boxes", None, "The most objects to report in an image, the best ones.", lower_bound=1)
    flags.DEFINE_bool("labels", True, "Write class names and scores on pictures and videos.")
    flags.DEFINE_bool("crops", False, "Write each object in an image as an image of its own, below crops/.")
    flags.DEFINE_string("gallery", None, "A PNG file for the first 12 pictures side by side.")


def main() -> None:
    """Detects in every image and video, and writes the results."""
    from refinedet_tf.inference import video
    from refinedet_tf.inference.detector import Detector
    from refinedet_tf.inference.files import Selection, detect_files, find_images

    videos = [source for source in FLAGS.input if video.is_video(source)]
    images = find_images(source for source in FLAGS.input if source not in videos)
    detector = Detector.load(FLAGS.model)
    selection = Selection(FLAGS.score_threshold, FLAGS.only, FLAGS.max_boxes)
    if images:
        summary = detect_files(
            detector,
            images,
            FLAGS.output_dir,
            selection=selection,
            formats=FLAGS.format,
            labels=FLAGS.labels,
            crops=FLAGS.crops,
            gallery=FLAGS.gallery,
            model_name=FLAGS.model,
        )
        for reason in summary.skipped:
            print(f"skipped: {reason}")
        counts = f"{summary.objects} objects in {summary.images} images ({len(summary.skipped)} skipped)"
        print(f"{counts}: {FLAGS.output_dir}")
    for source in videos:
        clip = video.detect_video(detector, source, FLAGS.output_dir, selection=selection, labels=FLAGS.labels)
        print(f"{clip.objects} objects in {clip.frames} frames: {clip.video}, {clip.detections}")
