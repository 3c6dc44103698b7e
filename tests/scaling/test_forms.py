import numpy as np
import pytest

from scaling import forms

RNG = np.random.default_rng(0)
FORMS = [
    (forms.POWER_CONST, [[-0.8, -5.0, -2.0], [-0.9, -0.1, 0.3]]),
    (forms.CHINCHILLA, [[-0.8, -5.0, -4.0, -2, -1.4], [0.5, -0.1, -1.0, -1, 0.2]]),
    (forms.REPEAT, [[-0.8, -5, -4, -2, -1.4, 1.1], [0.5, -0.1, -1, -1, -0.9, -2]]),
    (forms.GAIN_POWER, [[-5.0, 0.1], [0.3, -0.4]]),
    (forms.LOGLINEAR, [[0.45, -4e-4], [0.2, 0.1]]),
]


def _axes(form, count=7):
    x = np.exp(RNG.normal(size=(count, form.num_axes)))
    if form is forms.REPEAT:
        x[:, 2] = np.linspace(0, 6, count)
    return x


@pytest.mark.parametrize(("form", "theta"), FORMS, ids=lambda v: getattr(v, "name", ""))
def test_gradient_equals_central_differences(form, theta):
    theta, x = np.array(theta, float), _axes(form)
    gradient = form.value(theta, x)[1]
    assert gradient.shape == (2, 7, form.num_fitted)
    for i in range(form.num_fitted):
        step = np.zeros(form.num_fitted)
        step[i] = 1e-6
        up, down = form.value(theta + step, x)[0], form.value(theta - step, x)[0]
        np.testing.assert_allclose(gradient[..., i], (up - down) / 2e-6, atol=1e-8)


def test_values_equal_the_equations_in_unscaled_axes():
    theta = np.array([[-0.8, -5.0, np.log(0.12)]])
    x = np.array([[1e6], [3e7], [1e9]])
    scales = forms.POWER_CONST.scales(x)
    assert scales[0] == pytest.approx((1e6 * 3e7 * 1e9) ** (1 / 3))
    said = np.exp(forms.POWER_CONST.value(theta, x / scales)[0][0])
    is_ = {k: v[0] for k, v in forms.POWER_CONST.reported(theta, scales).items()}
    np.testing.assert_allclose(said, is_["E"] + is_["A"] * x[:, 0] ** -is_["alpha"])
    # and what they are written as: ln E and ln A of the scaled axis
    log_e, log_a = -0.8 + np.log1p(-np.exp(-5.0)), -0.8 - 5.0
    lse = np.logaddexp(log_e, log_a - 0.12 * np.log(x[:, 0] / scales[0]))
    np.testing.assert_allclose(np.log(said), lse, rtol=1e-13)
    assert is_["E"] == pytest.approx(np.exp(log_e))

    theta = np.array([[-0.8, -5.0, -4.0, np.log(0.12), np.log(0.25)]])
    x = np.array([[1e6, 1e7], [3e7, 1e8], [1e9, 1e7]])
    scales = forms.CHINCHILLA.scales(x)
    said = np.exp(forms.CHINCHILLA.value(theta, x / scales)[0][0])
    p = {k: v[0] for k, v in forms.CHINCHILLA.reported(theta, scales).items()}
    law = p["E"] + p["A"] * x[:, 0] ** -p["alpha"] + p["B"] * x[:, 1] ** -p["beta"]
    np.testing.assert_allclose(said, law)
    assert p["allocation"] == pytest.approx(0.25 / 0.37)

    theta = np.array([[0.3, -0.02]])
    scales = forms.LOGLINEAR.scales(x[:, :1])
    said = forms.LOGLINEAR.value(theta, x[:, :1] / scales)[0][0]
    p = forms.LOGLINEAR.reported(theta, scales)
    np.testing.assert_allclose(said, p["a"][0] + p["b"][0] * np.log(x[:, 0]))

    theta = np.array([[-5.0, 0.1]])
    said = np.exp(forms.GAIN_POWER.value(theta, x[:, :1] / scales)[0][0])
    p = forms.GAIN_POWER.reported(theta, scales)
    np.testing.assert_allclose(said, p["c"][0] * x[:, 0] ** p["gamma"][0])


def test_repeated_examples_are_worth_what_the_paper_says():
    # D' = U + U·R*·(1 - e^(-R/R*)): one epoch is itself, infinitely many are U·(1 + R*).
    axes = forms.repeat_axes([1e6] * 4, [5e6, 1e7, 2e7, 1e12], 1e7)
    np.testing.assert_allclose(axes[:, 1], [5e6, 1e7, 1e7, 1e7])
    np.testing.assert_allclose(axes[:, 2], [0, 0, 1, 99_999])
    theta = np.array([[-0.8, -5.0, -4.0, -2.1, -1.4, np.log(3.0)]])
    said = forms.REPEAT.value(theta, axes / [1e6, 1e7, 1])[0][0]
    worth = np.array([0.5, 1, 1 + 3 * (1 - np.exp(-1 / 3)), 4])
    joint = np.stack([np.ones(4), worth], axis=1)
    np.testing.assert_allclose(said, forms.CHINCHILLA.value(theta[:, :5], joint)[0][0])


def test_grids_of_starts_are_as_large_as_promised():
    y = np.full(5, 0.45)
    x = np.ones((5, 1))
    starts = forms.POWER_CONST.starts(x, y)
    assert len(np.unique(starts, axis=0)) == 20
    # Every start passes through the data at the middle of the axis.
    np.testing.assert_allclose(np.exp(forms.POWER_CONST.value(starts, x)[0]), 0.45)
    starts = forms.CHINCHILLA.starts(np.ones((5, 2)), y)
    assert len(np.unique(starts, axis=0)) == 27
    said = np.exp(forms.CHINCHILLA.value(starts, np.ones((5, 2)))[0])
    np.testing.assert_allclose(said, 0.45)
