"""Reads size and orientation from the header of an image file inside a graph, before anything is decoded.

Files may be damaged or malicious, so no header raises an error or takes long: what cannot be read is unknown.
"""

import tensorflow as tf

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
EXIF_MAGIC = b"Exif\0\0"
ORIENTATION_TAG, SHORT = 0x0112, 3  # of EXIF, and the type of its value
MAX_SEGMENTS = 4096  # of a file; the rest is not searched


def is_jpeg(contents: tf.Tensor) -> tf.Tensor:
    """Returns whether a file, a string scalar, is a JPEG, a bool scalar."""
    return _starts_with(contents, JPEG_MAGIC)


# A graph of its own: many callers trace it once.
@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def read_header(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads the header of a JPEG, PNG, GIF or BMP file.

    The orientation is the EXIF tag 0x0112 of a JPEG (APP1 segment) or a PNG (eXIf chunk), of type SHORT as EXIF 2.32
    requires and browsers expect.

    Args:
        contents: string scalar, the whole file.

    Returns:
        size: int64 `[2]`, height and width that the file claims for its stored pixels, before the orientation is
            applied; zeros if unknown.
        orientation: int32 scalar, 1..8; 1, which is upright, if it is missing or damaged.
    """
    size, exif = tf.case(
        [
            (is_jpeg(contents), lambda: _read_jpeg(contents)),
            (_starts_with(contents, PNG_MAGIC), lambda: _read_png(contents)),
            (_starts_with(contents, b"GIF8"), lambda: (_size(contents, 8, 6, "<H"), tf.constant(""))),
            (_starts_with(contents, b"BM"), lambda: (_size(contents, 22, 18, "<i"), tf.constant(""))),
        ],
        default=lambda: (tf.zeros([2], tf.int64), tf.constant("")),
    )
    return size, _read_orientation(exif)


def read_orientation(contents: tf.Tensor) -> tf.Tensor:
    """Reads only the orientation, as `read_header` does, and sooner: most JPEGs hold no EXIF data to walk to."""
    parts = tf.raw_ops.StringSplitV2(input=[contents], sep=EXIF_MAGIC, maxsplit=1).values
    is_plain = is_jpeg(contents) & (tf.size(parts) < 2)
    return tf.cond(is_plain, lambda: tf.constant(1), lambda: read_header(contents)[1])


def _read_jpeg(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Walks through the segments up to the first scan; returns the size and the TIFF structure of the EXIF segment."""
    length = tf.strings.length(contents)

    def step(position: tf.Tensor, frame: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # A segment is a marker (2 bytes, 0xFF first), its own length (2 bytes, itself included) and its data.
        head = _part(contents, position, 10)
        marker, size = tf.unstack(tf.cast(tf.io.decode_raw(head, tf.uint16, False, 4), tf.int32))
        is_frame = (marker >= 0xFFC0) & (marker <= 0xFFCF) & tf.reduce_all(marker != [0xFFC4, 0xFFC8, 0xFFCC])
        frame = tf.where((frame == 0) & is_frame, position, frame)
        is_exif = (marker == 0xFFE1) & (tf.strings.substr(head, 4, 6) == EXIF_MAGIC)
        exif = tf.where((exif == 0) & is_exif, position, exif)
        is_bare = (marker == 0xFF01) | ((marker >= 0xFFD0) & (marker <= 0xFFD8))  # no length, no data
        is_junk = (marker < 0xFF01) | (marker == 0xFFFF)  # which decoders skip
        is_last = (marker == 0xFFD9) | (marker == 0xFFDA) | (~is_bare & ~is_junk & (size < 2))
        following = position + tf.where(is_junk, 1, tf.where(is_bare, 2, 2 + size))
        return tf.where(is_last | ((frame > 0) & (exif > 0)), length, following), frame, exif

    start = tf.constant(2), tf.constant(0), tf.constant(0)
    _, frame, exif = tf.while_loop(
        lambda position, *_: position + 4 <= length, step, start, maximum_iterations=MAX_SEGMENTS
    )
    size = tf.cond(frame > 0, lambda: _size(contents, frame + 5, frame + 7, ">H"), lambda: tf.zeros([2], tf.int64))
    return size, _part(contents, exif + 10, tf.where(exif > 0, _number(contents, exif + 2, ">H") - 8, 0))


def _read_png(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Walks through the chunks up to eXIf; returns the size and the TIFF structure of that chunk."""
    length = tf.cast(tf.strings.length(contents), tf.int64)

    def step(position: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # A chunk is the length of its data (4 bytes), its type (4 bytes), its data and a checksum (4 bytes).
        size = _number(contents, position, ">i")
        is_exif = _part(contents, position + 4, 4) == b"eXIf"
        return tf.where(is_exif | (size < 0), length, position + 12 + size), tf.where(is_exif, position, exif)

    start = tf.constant(8, tf.int64), tf.constant(0, tf.int64)
    _, exif = tf.while_loop(lambda position, _: position + 12 <= length, step, start, maximum_iterations=MAX_SEGMENTS)
    return _size(contents, 20, 16, ">i"), _part(
        contents, exif + 8, tf.where(exif > 0, _number(contents, exif, ">i"), 0)
    )


def _read_orientation(tiff: tf.Tensor) -> tf.Tensor:
    """Searches the first directory of a TIFF structure, which may be empty."""
    is_little_endian = _starts_with(tiff, b"II*\0")

    def number(position: int | tf.Tensor, kind: str) -> tf.Tensor:
        return tf.where(is_little_endian, _number(tiff, position, "<" + kind), _number(tiff, position, ">" + kind))

    def search() -> tf.Tensor:
        directory = number(4, "I")
        # An entry is a tag (2 bytes), a type (2), the number of values (4) and the value (4, left-aligned).
        entries = _part(tiff, directory + 2, 12 * number(directory, "H"))
        entries = tf.strings.substr(entries, 0, tf.strings.length(entries) // 12 * 12)
        first, second = (tf.cast(tf.io.decode_raw(entries, tf.uint8), tf.int32)[place::2] for place in (0, 1))
        words = tf.reshape(tf.where(is_little_endian, first + 256 * second, 256 * first + second), [-1, 6])
        head = tf.where(is_little_endian, [ORIENTATION_TAG, SHORT, 1, 0], [ORIENTATION_TAG, SHORT, 0, 1])
        values = tf.boolean_mask(words[:, 4], tf.reduce_all(words[:, :4] == head, axis=1))
        values = tf.boolean_mask(values, (values >= 1) & (values <= 8))
        return tf.concat([values, [1]], axis=0)[0]

    is_tiff = is_little_endian | _starts_with(tiff, b"MM\0*")
    return tf.cond(is_tiff, search, lambda: tf.constant(1))


def _size(contents: tf.Tensor, height_at: int | tf.Tensor, width_at: int | tf.Tensor, form: str) -> tf.Tensor:
    """Returns height and width at two positions; heights of BMP files are negative if rows run downward."""
    return tf.abs(tf.stack([_number(contents, height_at, form), _number(contents, width_at, form)]))


def _number(contents: tf.Tensor, position: int | tf.Tensor, form: str) -> tf.Tensor:
    """Returns the number at a position as int64; bytes beyond the end are 0.

    `form` is one of the `struct` module: "<" or ">" for the byte order, "H", "i" or "I" for the type.
    """
    kind, size = (tf.uint16, 2) if form[1] == "H" else (tf.int32, 4)
    value = tf.io.decode_raw(_part(contents, position, size), kind, form[0] == "<", fixed_length=size)[0]
    value = tf.cast(value, tf.int64)
    return value % 2**32 if form[1] == "I" else value


def _part(contents: tf.Tensor, start: int | tf.Tensor, length: int | tf.Tensor) -> tf.Tensor:
    """Returns at most `length` bytes from `start` on, fewer at the end and none beyond it."""
    end = tf.cast(tf.strings.length(contents), tf.int64)
    start = tf.minimum(tf.cast(start, tf.int64), end)
    return tf.strings.substr(contents, start, tf.maximum(tf.cast(length, tf.int64), 0))


def _starts_with(contents: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.strings.substr(contents, 0, len(magic)) == magic
