"""Published scaling laws, by name, with their sources."""

import math
from typing import NamedTuple

from fmjax.scaling.data_constrained import DataConstrainedLaw
from fmjax.scaling.kaplan import (
    PF_DAY,
    ComputeLaw,
    FlopsLaw,
    JointLaw,
    ParametersLaw,
    TokensLaw,
)
from fmjax.scaling.laws import HoffmannLaw, Law


class Published(NamedTuple):
    """A law with published constants.

    Attributes:
      law: with the constants.
      source: where they are published.
    """

    law: Law
    source: str


PRESETS = {
    "hoffmann": Published(
        HoffmannLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
        "Hoffmann et al. 2022 (arXiv:2203.15556), equation 10",
    ),
    "besiroglu": Published(
        HoffmannLaw(E=1.81686, A=482.01, B=2085.43, alpha=0.34781, beta=0.36585),
        "Besiroglu et al. 2024 (arXiv:2404.10102), refit of Hoffmann et al.'s runs",
    ),
    "muennighoff": Published(
        DataConstrainedLaw(
            E=math.exp(0.6254804),
            A=math.exp(6.255414),
            B=math.exp(7.3049974),
            alpha=0.3526596,
            beta=0.3526596,
            R_D=15.387756,
            R_N=5.309743,
        ),
        "Muennighoff et al. 2023 (arXiv:2305.16264), appendix A",
    ),
    "kaplan": Published(
        ComputeLaw(
            C_c=3.1e8 * PF_DAY,
            alpha_C=0.050,
            k=1.3e9 * PF_DAY**-0.73,
            p_N=0.73,
            alpha_N=0.076,
            alpha_S=0.76,
        ),
        "Kaplan et al. 2020 (arXiv:2001.08361), L(C_min) and appendices A and B.4",
    ),
    "kaplan_joint": Published(
        JointLaw(N_c=6.4e13, D_c=1.8e13, alpha_N=0.076, alpha_D=0.103),
        "Kaplan et al. 2020 (arXiv:2001.08361), table 2",
    ),
    "kaplan_parameters": Published(
        ParametersLaw(N_c=8.8e13, alpha_N=0.076),
        "Kaplan et al. 2020 (arXiv:2001.08361), equation 1.1",
    ),
    "kaplan_tokens": Published(
        TokensLaw(D_c=5.4e13, alpha_D=0.095),
        "Kaplan et al. 2020 (arXiv:2001.08361), equation 1.2",
    ),
    "kaplan_flops": Published(
        FlopsLaw(C_c=3.1e8 * PF_DAY, alpha_C=0.050),
        "Kaplan et al. 2020 (arXiv:2001.08361), equation 1.3",
    ),
}
