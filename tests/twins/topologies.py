"""Topologies to draw, whose promises both backends keep."""

from hypothesis import strategies as st

from nt_core import Dynamic, Semantics, Static
from nt_core.policies import PRUNES


def topologies(sparsest, grow):
    """Those that stand still, and those that move by what a backend computes."""
    return st.one_of(
        st.builds(Static, sparsity=st.sampled_from([0.0, 0.5, 0.9])),
        st.builds(
            Dynamic,
            sparsity=st.sampled_from([0.0, 0.3, 0.8, sparsest]),
            allocation=st.sampled_from(["erk", "er", "uniform"]),
            prune=st.sampled_from(list(PRUNES)),
            grow=st.sampled_from(grow),
            drop_fraction=st.sampled_from([0.3, 1.0]),
            interval=st.integers(1, 3),
            semantics=st.builds(
                Semantics,
                optimizer_step=st.sampled_from(["taken", "replaced"]),
                regrow=st.sampled_from(["out", "return"]),
                grown_value=st.sampled_from(["zero", "initial"]),
                rounding=st.sampled_from(["floor", "ceil", "nearest"]),
            ),
        ),
    )
