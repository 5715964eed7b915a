"""Reads through the HDF5 file in sys.argv[1], or that of a .keras file, and exits with 0 if it can be read.

A program and not a function, since libhdf5 crashes on some damaged files: `keras_files` runs it in a process of its
own before it opens the file itself. For speed it imports nothing of the library.
"""

import io
import sys
import zipfile

import h5py

MAX_BYTES = 2**32  # that a file may unpack to; the largest RefineDet takes 330 MB


def main(path: str) -> None:
    """Reads every attribute and every dataset.

    Raises:
        ValueError: the file refers to other files or claims to be huge.
        Exception: whatever a damaged file leads to.
    """
    source = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("model.weights.h5").file_size > MAX_BYTES:
                raise ValueError("it claims to hold more than 4 GB")
            source = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(source, "r") as file:
        items = [file]
        file.visititems(lambda _, item: items.append(item))
        datasets = [item for item in items if isinstance(item, h5py.Dataset)]
        if any(dataset.external or dataset.is_virtual for dataset in datasets):
            raise ValueError("it refers to other files")
        if sum(dataset.nbytes for dataset in datasets) > MAX_BYTES:
            raise ValueError("it claims to hold more than 4 GB")
        for item in items:
            dict(item.attrs)
        for dataset in datasets:
            dataset[()]


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        sys.exit(f"{error}")
