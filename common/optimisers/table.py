"""The optimisers, a line each; `common.optimisers.options` has what each can be told."""

from common.methods import Method

HOME = "common.optimisers.options"
ADAM = "Kingma & Ba, Adam, ICLR 2015"

OPTIMISERS: dict[str, Method] = {
    "sgd": Method(
        f"{HOME}:SGD",
        "stochastic gradient descent, with momentum if set",
        always_fits=True,
    ),
    "adam": Method(f"{HOME}:Adam", "adaptive moments", ADAM, always_fits=True),
    "adamw": Method(
        f"{HOME}:Adam",
        "Adam with decoupled weight decay",
        "Loshchilov & Hutter, Decoupled weight decay regularization, ICLR 2019",
        always_fits=True,
    ),
    "adadelta": Method(
        f"{HOME}:Adadelta",
        "steps by the root of past steps; lr is near 1",
        "Zeiler, 2012",
        always_fits=True,
    ),
    "adagrad": Method(
        f"{HOME}:Adagrad",
        "each rate falls with its gradients",
        "Duchi et al., JMLR 2011",
        always_fits=True,
    ),
    "adamax": Method(
        f"{HOME}:Moments", "Adam by the largest gradient", f"{ADAM}, section 7", always_fits=True
    ),
    "asgd": Method(
        f"{HOME}:ASGD",
        "stochastic gradient descent with a rate that falls",
        "Polyak & Juditsky, 1992",
        always_fits=True,
    ),
    "nadam": Method(
        f"{HOME}:NAdam",
        "Adam with Nesterov's momentum",
        "Dozat, ICLR workshops 2016",
        always_fits=True,
    ),
    "radam": Method(
        f"{HOME}:Moments",
        "Adam whose first steps are rectified",
        "Liu et al., RAdam, ICLR 2020",
        always_fits=True,
    ),
    "rmsprop": Method(
        f"{HOME}:RMSprop",
        "gradients by the root of their mean square",
        "Tieleman & Hinton, lecture 6.5, 2012",
        always_fits=True,
    ),
    "rprop": Method(
        f"{HOME}:Rprop",
        "by the gradients' signs alone; for whole batches",
        "Riedmiller & Braun, ICNN 1993",
        always_fits=True,
    ),
}
