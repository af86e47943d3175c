"""The loss weightings, a line each; `common.weighting.weighting` says what each must have."""

from common.methods import Method

TORCHJD = {"torchjd": "gradients"}
QUADPROG = {**TORCHJD, "qpsolvers": "gradients", "quadprog": "gradients"}
CVXPY = {**TORCHJD, "cvxpy": "gradients"}
ECOS = {**CVXPY, "ecos": "gradients"}

LOSSES = "a few numbers per step; any engine"
JACOBIAN = "a backward pass per task and step, client by client"

WEIGHTINGS: dict[str, Method] = {
    "equal": Method(
        "common.weighting.fixed:Fixed",
        "every task counts alike",
        cost="none",
        always_fits=True,
    ),
    "manual": Method(
        "common.weighting.fixed:Fixed",
        "each task's own weight",
        cost="none",
        always_fits=True,
    ),
    "uncertainty": Method(
        "common.weighting.uncertainty:Uncertainty",
        "a learned noise per task divides its loss",
        "Kendall et al., CVPR 2018, eq. 7 and 10",
        LOSSES,
        fewest_tasks=2,
    ),
    "dwa": Method(
        "common.weighting.dwa:DynamicWeightAverage",
        "tasks whose loss fell least from round to round count most",
        "Liu et al., MTAN, CVPR 2019, eq. 7",
        LOSSES,
        fewest_tasks=2,
    ),
    "gradnorm": Method(
        "common.weighting.gradnorm:GradNorm",
        "tasks pull alike on the trunk, slow ones harder",
        "Chen et al., ICML 2018, eq. 1 and 2",
        "a backward pass through the heads per task and step, client by client",
        fewest_tasks=2,
    ),
    "random": Method(
        "common.weighting.random_weights:RandomWeights",
        "fresh random weights at every step",
        "Lin et al., RLW, TMLR 2022, section 3",
        LOSSES,
        fewest_tasks=2,
    ),
    "geometric": Method(
        "common.weighting.geometric:GeometricMean",
        "the geometric mean of the losses",
        "Chennupati et al., MultiNet++, CVPR workshops 2019, eq. 3",
        LOSSES,
        fewest_tasks=2,
    ),
    "imtl-l": Method(
        "common.weighting.imtl_l:ImpartialLosses",
        "a learned scale per task brings every loss to 1",
        "Liu et al., IMTL, ICLR 2021, section 3.2",
        LOSSES,
        fewest_tasks=2,
    ),
    "famo": Method(
        "common.weighting.famo:FastAdaptive",
        "all losses fall at the same rate",
        "Liu et al., FAMO, NeurIPS 2023, Algorithm 1",
        "a forward pass more per step",
        fewest_tasks=2,
    ),
    "smooth-tchebycheff": Method(
        "common.weighting.smooth_tchebycheff:SmoothTchebycheff",
        "nearly only the worst task counts; takes a preference",
        "Lin et al., ICML 2024, eq. 6",
        LOSSES,
        fewest_tasks=2,
    ),
    "upgrad": Method(
        "common.weighting.gradients:UPGrad",
        "each gradient is freed of conflict, then they are averaged; takes a preference",
        "Quinton & Rey, Jacobian descent, 2024, UPGrad",
        JACOBIAN,
        QUADPROG,
        fewest_tasks=2,
    ),
    "dualproj": Method(
        "common.weighting.gradients:DualProj",
        "the mean gradient is freed of conflict; takes a preference",
        "Lopez-Paz & Ranzato, GEM, NeurIPS 2017, eq. 11",
        JACOBIAN,
        QUADPROG,
        fewest_tasks=2,
    ),
    "mgda": Method(
        "common.weighting.gradients:MGDA",
        "the shortest convex combination of the gradients",
        "Sener & Koltun, NeurIPS 2018, eq. 3",
        JACOBIAN,
        TORCHJD,
        fewest_tasks=2,
    ),
    "pcgrad": Method(
        "common.weighting.gradients:PCGrad",
        "what conflicts is projected away, pair by pair",
        "Yu et al., NeurIPS 2020, Algorithm 1",
        JACOBIAN,
        TORCHJD,
        fewest_tasks=2,
    ),
    "gradvac": Method(
        "common.weighting.gradients:GradVac",
        "gradients are turned towards their usual cosines",
        "Wang et al., Gradient vaccine, ICLR 2021, Algorithm 1",
        JACOBIAN,
        TORCHJD,
        fewest_tasks=2,
    ),
    "cagrad": Method(
        "common.weighting.gradients:CAGrad",
        "the best step for the worst task, near the mean gradient",
        "Liu et al., NeurIPS 2021, Algorithm 1",
        f"{JACOBIAN}, and a small conic program",
        CVXPY,
        fewest_tasks=2,
    ),
    "nash-mtl": Method(
        "common.weighting.gradients:NashMTL",
        "the tasks' bargaining solution",
        "Navon et al., ICML 2022, Algorithm 1",
        f"{JACOBIAN}, and up to 20 small conic programs",
        ECOS,
        fewest_tasks=2,
    ),
    "imtl-g": Method(
        "common.weighting.gradients:IMTLG",
        "equal projections on all gradients' directions",
        "Liu et al., IMTL, ICLR 2021, section 3.1",
        JACOBIAN,
        TORCHJD,
        fewest_tasks=2,
    ),
    "aligned-mtl": Method(
        "common.weighting.gradients:AlignedMTL",
        "gradients made orthogonal and alike in size; takes a preference",
        "Senushkin et al., CVPR 2023, Algorithm 1",
        JACOBIAN,
        TORCHJD,
        fewest_tasks=2,
    ),
    "fairgrad": Method(
        "common.weighting.gradients:FairGrad",
        "alpha-fair progress for all tasks",
        "Ban & Ji, ICML 2024, Algorithm 1",
        f"{JACOBIAN}, and a small least-squares problem",
        TORCHJD,
        fewest_tasks=2,
    ),
    "config": Method(
        "common.weighting.gradients:ConFIG",
        "the direction at equal angles to all gradients; takes a preference",
        "Liu et al., ConFIG, ICLR 2025, eq. 2",
        JACOBIAN,
        TORCHJD,
        fewest_tasks=2,
    ),
    "graddrop": Method(
        "common.weighting.gradients:GradDrop",
        "one sign per entry survives, drawn by its purity",
        "Chen et al., NeurIPS 2020, Algorithm 1",
        JACOBIAN,
        TORCHJD,
        fewest_tasks=2,
    ),
}
