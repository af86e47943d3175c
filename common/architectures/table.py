"""The sharing architectures, a line each; `common.architectures.trunk` says what each must have."""

from common.methods import Method

SHARINGS: dict[str, Method] = {
    "hard": Method(
        "common.architectures.hard:HardSharing",
        "one trunk, read by all heads",
        "Caruana, Multitask learning, Machine Learning 28, 1997",
        "the least there is",
        always_fits=True,
    ),
}
