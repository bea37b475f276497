"""Points from CSV files: what N, D and C give each other, and what is refused."""

import numpy as np
import pytest

from fmjax.errors import UserError
from fmjax.scaling.points import read_points
from tests.scaling.runs import write_csv

N, D, L = [1e8, 2e8, 4e8], [1e9, 2e9, 3e9], [4.0, 3.5, 3.0]
C = [6 * n * d for n, d in zip(N, D)]


@pytest.mark.parametrize(
    "columns",
    [
        {"parameters": N, "tokens": D},
        {"parameters": N, "flops": C},
        {"tokens": D, "flops": C},
    ],
)
def test_two_of_parameters_tokens_and_flops_are_enough(tmp_path, columns):
    points = read_points(write_csv(tmp_path / "a.csv", **columns, loss=L))
    np.testing.assert_allclose(points.parameters, N)
    np.testing.assert_allclose(points.tokens, D)
    np.testing.assert_allclose(points.flops, C)
    np.testing.assert_allclose(points.loss, L)


def test_columns_have_other_names_and_the_highest_losses_are_left_out(tmp_path):
    file = write_csv(
        tmp_path / "a.csv",
        **{"size": N, "Training FLOP": C, "loss": L, "run": ["x", "y", "z"]},
        unique_tokens=[1e9, "", 5e8],
    )
    columns = {"parameters": "size", "flops": "Training FLOP"}
    points = read_points(file, columns, without_highest=1)
    np.testing.assert_allclose(points.parameters, N[1:])
    np.testing.assert_array_equal(points.unique_tokens, [np.inf, 5e8])
    assert list(points.run) == ["y", "z"]


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "", "3,0", "many"])
def test_values_that_are_no_positive_numbers_are_refused(tmp_path, value):
    file = write_csv(
        tmp_path / "a.csv", parameters=N, tokens=D, loss=[4.0, f'"{value}"', 3.0]
    )
    with pytest.raises(UserError, match=r"a\.csv, line 3: loss = '.*'; expected a pos"):
        read_points(file)


def test_missing_files_columns_and_points_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv cannot be read: No such file"):
        read_points(tmp_path / "none.csv")
    file = write_csv(tmp_path / "a.csv", parameters=N, tokens=D, Loss=L)
    with pytest.raises(UserError, match=r"no column 'loss'.* by --loss"):
        read_points(file)
    with pytest.raises(UserError, match=r"'losss' \(--loss\)\. Did you mean 'Loss'"):
        read_points(file, {"loss": "losss"})
    file = write_csv(tmp_path / "b.csv", parameters=N, loss=L)
    with pytest.raises(UserError, match="two of the columns 'parameters', 'tokens'"):
        read_points(file)
    (tmp_path / "c.csv").write_text("parameters,tokens,loss\n")
    with pytest.raises(UserError, match="expected a line of column names and points"):
        read_points(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_bytes(b"parameters,tokens,loss\n\xff,1,1\n")
    with pytest.raises(UserError, match="not a CSV file in UTF-8"):
        read_points(tmp_path / "d.csv")


@pytest.mark.parametrize("count", [-1, 3])
def test_as_many_points_cannot_be_left_out(tmp_path, count):
    file = write_csv(tmp_path / "a.csv", parameters=N, tokens=D, loss=L)
    with pytest.raises(UserError, match=rf"--without_highest {count}: expected 0 to 2"):
        read_points(file, without_highest=count)
