"""What encoding learned from a client's training rows; new rows cannot be encoded without it.

It belongs to the model as heads do, and stays home as they do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from common.scaling import Scaling


@dataclass(frozen=True)
class Fitted:
    """The scalings of one client.

    Attributes:
        inputs: inputs that are standardised, or filled with means, by the client's own rows.
        targets: regression tasks whose targets are standardised by the client's own rows; in the
            unit that ``transform`` gives.
    """

    inputs: Mapping[str, Scaling] = field(default_factory=dict)
    targets: Mapping[str, Scaling] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write as JSON; every number reads back as it was, to the last bit.

        >>> Fitted(targets={"y": Scaling(np.array([0.1]), np.array([2.0]))}).to_json()
        '{"inputs": {}, "targets": {"y": {"mean": [0.1], "deviation": [2.0]}}}'
        """
        parts = {"inputs": self.inputs, "targets": self.targets}
        return json.dumps({part: _write(scalings) for part, scalings in parts.items()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not that.
        """
        try:
            content = json.loads(text)
            return cls(_read(content["inputs"]), _read(content["targets"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no record of scalings: {type(error).__name__}") from error


def _write(scalings: Mapping[str, Scaling]) -> dict[str, Any]:
    return {
        name: {"mean": scaling.mean.tolist(), "deviation": scaling.deviation.tolist()}
        for name, scaling in scalings.items()
    }


def _read(content: Mapping[str, Any]) -> dict[str, Scaling]:
    scalings = {}
    for name, columns in content.items():
        mean, deviation = (np.array(columns[key], np.float64) for key in ("mean", "deviation"))
        usable = mean.ndim == 1 and mean.shape == deviation.shape and (deviation > 0).all()
        if not usable or not np.isfinite([mean, deviation]).all():
            raise ValueError(f"scaling of '{name}' needs a mean and a deviation for each column")
        scalings[name] = Scaling(mean, deviation)
    return scalings
