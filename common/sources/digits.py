"""The handwritten digits that ship with scikit-learn: 1,797 images of 8 x 8, no download.

Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI 80, 1998 (its test set).
"""

import numpy as np

from common.sections.rows import Data
from common.tables import ClientTable, TableSource

BRIGHTEST = 16  # of a pixel


def open_digits(data: Data) -> TableSource:
    """Open the digits as one client, to be partitioned; `data.path` is not used.

    Columns: ``pixels`` [1797, 8, 8] from 0 to 16; ``digit`` 0 to 9; ``parity`` 1 where the digit is
    odd; ``ink`` the mean pixel as a share of the brightest.
    """
    from sklearn.datasets import load_digits  # a second to import; listing sources must not wait

    bunch = load_digits()
    columns = {
        "pixels": bunch.images.astype(np.float32),
        "digit": bunch.target.astype(np.int64),
        "parity": (bunch.target % 2).astype(np.int64),
        "ink": bunch.images.mean(axis=(1, 2)) / BRIGHTEST,
    }
    return TableSource(("digits",), lambda name: ClientTable(name, columns))
