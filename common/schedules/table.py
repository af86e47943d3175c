"""The schedules, a line each; `common.schedules.schedule` says what each must have."""

from common.methods import Method

SCHEDULES: dict[str, Method] = {
    "constant": Method(
        "common.schedules.shapes:Constant",
        "the learning rate as it is",
        always_fits=True,
    ),
    "warm-up": Method(
        "common.schedules.shapes:WarmUp",
        "rises on a line, then stays",
        "Goyal et al., Accurate, large minibatch SGD, 2017, section 2.2",
    ),
    "cosine": Method(
        "common.schedules.shapes:Cosine",
        "falls along half a cosine to the end",
        "Loshchilov & Hutter, SGDR, ICLR 2017, eq. 5",
    ),
    "step": Method(
        "common.schedules.shapes:Stairs",
        "falls by a factor, every so many",
        "He et al., ResNet, CVPR 2016, section 3.4",
    ),
    "exponential": Method(
        "common.schedules.shapes:Exponential",
        "falls by a factor every time",
    ),
    "cyclic": Method(
        "common.schedules.shapes:Cyclic",
        "rises and falls on lines, over and over",
        "Smith, Cyclical learning rates, WACV 2017, section 3.1",
    ),
    "one-cycle": Method(
        "common.schedules.shapes:OneCycle",
        "rises to the learning rate, then falls far below where it began",
        "Smith & Topin, Super-convergence, 2019, section 3",
    ),
}
