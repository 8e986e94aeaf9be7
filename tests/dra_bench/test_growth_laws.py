"""Laws of growth, against values worked out by hand."""

import numpy as np
import pytest

from dra_bench.laws import fitted


def test_a_line_is_found_again():
    law = fitted("linear", [10, 20, 50, 100], [3 + 2 * x for x in (10, 20, 50, 100)])
    assert (law.a, law.b) == pytest.approx((3, 2))
    assert law.at(1000) == pytest.approx(2003)
    assert law.residual == pytest.approx(0, abs=1e-12)
    assert law.over == (10, 20, 50, 100)


def test_a_power_is_found_again():
    law = fitted("power", [10, 20, 50], [4 * x**0.5 for x in (10, 20, 50)])
    assert (law.a, law.b) == pytest.approx((4, 0.5))
    assert law.at(900) == pytest.approx(120)
    assert law.formula("x") == "4 * x ** 0.50"


def test_only_the_last_decade_counts():
    """Smaller galleries lie in a faster cache: here all below 1,000 cost nothing."""
    law = fitted("linear", [10, 99, 1000, 500, 100], [1e-9, 1e-9, 2000, 1000, 200])
    assert law.b == pytest.approx(2)
    assert law.over == (1000, 500, 100)


def test_small_and_large_points_count_alike():
    x, y = np.array([10, 20, 50, 100]), np.array([26, 45, 105, 260])
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)  # each residual divided by its value
    law = fitted("linear", x, y)
    assert (law.a, law.b) == pytest.approx((intercept, slope))


def test_a_line_never_costs_less_than_nothing():
    law = fitted("linear", [10, 20, 40], [1, 10, 30])  # through the points it would be about -9 at 0
    assert law.a == 0
    # Least squares of b * x / y - 1 with x / y = 10, 2, 4/3: their sum over the sum of their squares
    assert law.b == pytest.approx((10 + 2 + 4 / 3) / (100 + 4 + 16 / 9))
    falling = fitted("linear", [10, 20, 40], [4, 2, 1])
    assert falling.b == 0
    assert falling.a == pytest.approx((1 / 4 + 1 / 2 + 1) / (1 / 16 + 1 / 4 + 1))


def test_the_residual_is_the_largest_relative_difference():
    law = fitted("linear", [10, 20, 40], [1, 10, 30])
    assert law.residual == pytest.approx(max(abs(law.b * x / y - 1) for x, y in ((10, 1), (20, 10), (40, 30))))
    assert law.residual > 0.1


@pytest.mark.parametrize("kind", ["linear", "power"])
def test_two_points_are_no_law(kind):
    assert fitted(kind, [10, 20], [1, 2]) is None
    assert fitted(kind, [1, 2, 3, 1000, 2000], [1, 2, 3, 4, 5]) is None
    assert fitted(kind, [10, 20, 30], [1, 2, 3], above=10) is None
