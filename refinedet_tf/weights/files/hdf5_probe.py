"""Reads a whole HDF5 file, or that of a .keras file, and exits with 0 if nothing is wrong with it.

    python hdf5_probe.py FILE MAX_BYTES

libhdf5 crashes on some damaged files, so `hdf5` runs this program in a process of its own before it opens a file
itself. It imports nothing of the library, which would take seconds.
"""

import io
import sys
import zipfile

import h5py

KERAS_WEIGHTS = "model.weights.h5"  # the member of a .keras file that holds its weights


def check_datasets(file: h5py.File, max_bytes: int) -> list[h5py.Dataset]:
    """Checks what a file claims to hold, before any of it is read.

    Args:
        file: the open file.
        max_bytes: how many bytes all its datasets may unpack to.

    Returns:
        The datasets.

    Raises:
        ValueError: the file refers to other files or claims to hold more.
        Exception: anything that h5py raises over a damaged file.
    """
    datasets = []
    file.visititems(lambda _, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
    if any(dataset.external or dataset.is_virtual for dataset in datasets):
        raise ValueError("it refers to other files")
    claimed = sum(dataset.nbytes for dataset in datasets)
    if claimed > max_bytes:
        raise ValueError(f"it claims to hold {claimed} bytes, of which at most {max_bytes} can be needed")
    return datasets


def main(path: str, max_bytes: int) -> None:
    """Reads every attribute and every dataset.

    Raises:
        ValueError: the file refers to other files or claims to hold too much.
        Exception: anything that h5py raises over a damaged file.
    """
    source = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(KERAS_WEIGHTS).file_size > max_bytes:
                raise ValueError("it is compressed; Keras never compresses, so this may be a zip bomb")
            source = io.BytesIO(archive.read(KERAS_WEIGHTS))
    with h5py.File(source, "r") as file:
        datasets = check_datasets(file, max_bytes)
        items = [file]
        file.visititems(lambda _, item: items.append(item))
        for item in items:
            dict(item.attrs)
        for dataset in datasets:
            dataset[()]


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except Exception as error:
        sys.exit(f"{error}")
