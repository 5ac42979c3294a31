"""The sampler by itself, in plain Optuna studies."""

from collections.abc import Callable

import numpy as np
import optuna
import pytest

from unfreeze.evidence.model import Posterior
from unfreeze.search import EvidenceSampler

SIZES = {"ln1": 128, "mha": 16640, "ln2": 128, "fc1": 16640, "fc2": 16448}
RATES = (1e-3, 1e-1)


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def accuracy(trial: optuna.Trial) -> float:
    """mha and fc1 help, the norms hurt, best at 0.02."""
    on = {name: trial.suggest_categorical(name, [False, True]) for name in SIZES}
    rate = trial.suggest_float("learning_rate", *RATES, log=True)
    value = 1 + 0.6 * on["mha"] + 0.3 * on["fc1"] - 0.3 * on["ln1"] - 0.3 * on["ln2"] - (np.log10(rate) + 1.7) ** 2
    return float(1 / (1 + np.exp(-value)))


def best_after(sampler: optuna.samplers.BaseSampler, trials: int) -> float:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(accuracy, n_trials=trials)
    return study.best_value


def test_it_finds_what_random_draws_miss() -> None:
    ours = [best_after(EvidenceSampler(SIZES, RATES, seed=seed), 12) for seed in range(3)]
    random = [best_after(optuna.samplers.RandomSampler(seed=seed), 12) for seed in range(3)]
    assert np.mean(ours) > np.mean(random)
    assert min(ours) > 0.86  # the best there is: 1 / (1 + exp(−1.9)) = 0.87


def test_the_same_seed_asks_for_the_same_trials() -> None:
    studies = []
    for _ in range(2):
        study = optuna.create_study(direction="maximize", sampler=EvidenceSampler(SIZES, RATES, seed=3))
        study.optimize(accuracy, n_trials=6)
        studies.append([trial.params for trial in study.trials])
    assert studies[0] == studies[1]


def test_running_trials_are_not_asked_for_at_once_again() -> None:
    study = optuna.create_study(direction="maximize", sampler=EvidenceSampler(SIZES, RATES))
    study.optimize(accuracy, n_trials=5)
    asked = []
    for _ in range(3):
        trial = study.ask()
        accuracy(trial)
        asked.append(tuple(trial.params.items()))
    assert len(set(asked)) == 3


def test_what_is_not_allowed_is_never_tried() -> None:
    sampler = EvidenceSampler(SIZES, RATES, allowed=lambda on: "mha" not in on and len(on) <= 2)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(accuracy, n_trials=6)
    for trial in study.trials:
        on = {name for name in SIZES if trial.params[name]}
        assert 1 <= len(on) <= 2
        assert "mha" not in on


def test_sixty_switches_of_five_kinds_and_other_parameters() -> None:
    switches = {f"{name}@{block}": size for name, size in SIZES.items() for block in range(12)}
    kinds = {name: name.split("@")[0] for name in switches}

    def objective(trial: optuna.Trial) -> float:
        on = [trial.suggest_categorical(name, [False, True]) for name in switches]
        trial.suggest_float("learning_rate", *RATES, log=True)
        return 0.5 + 0.2 * float(np.mean(on)) + 0.1 * trial.suggest_float("weight_decay", 0, 1)

    study = optuna.create_study(direction="maximize", sampler=EvidenceSampler(switches, RATES, kinds=kinds))
    study.optimize(objective, n_trials=4)
    assert all(any(trial.params[name] for name in switches) for trial in study.trials)


def test_pruned_trials_count_and_failed_ones_do_not() -> None:
    def objective(trial: optuna.Trial) -> float:
        value = accuracy(trial)
        if trial.number == 0:
            raise RuntimeError("out of memory")
        trial.report(value, 0)
        raise optuna.TrialPruned

    study = optuna.create_study(direction="maximize", sampler=EvidenceSampler(SIZES, RATES))
    study.optimize(objective, n_trials=5, catch=RuntimeError)
    assert [trial.state.name for trial in study.trials] == ["FAIL"] + ["PRUNED"] * 4
    assert len({tuple(trial.params.items()) for trial in study.trials[1:]}) == 4


def test_what_is_no_number_says_nothing() -> None:
    """A loss that breaks down is reported as NaN and pruned, or returned, which Optuna takes for a failure."""

    def objective(trial: optuna.Trial) -> float:
        value = accuracy(trial)
        trial.report(float("nan") if trial.number != 1 else value, 0)
        if trial.number == 1:
            trial.report(float("nan"), 1)
        if trial.number < 3:
            raise optuna.TrialPruned
        return float("nan")

    sampler = EvidenceSampler(SIZES, RATES)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=6)
    assert [trial.state.name for trial in study.trials] == ["PRUNED"] * 3 + ["FAIL"] * 3
    _, tried = sampler._posterior(study, 6)
    assert len(tried) == 1  # the second, which said a number first


@pytest.mark.parametrize("width", [5, 12])
def test_a_fit_that_breaks_down_draws_at_random_and_says_so(
    width: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Among what is allowed, whether all sets can be looked at or not."""

    def breaks(*_: object) -> None:
        raise np.linalg.LinAlgError("Matrix is not positive definite")

    monkeypatch.setattr(Posterior, "__init__", breaks)
    names = [f"s{number}" for number in range(width)]
    sampler = EvidenceSampler(dict.fromkeys(names, 100), RATES, allowed=lambda on: "s0" not in on)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(4):
        trial = study.ask()
        assert not trial.suggest_categorical("s0", [False, True])
        assert any(trial.suggest_categorical(name, [False, True]) for name in names)
        assert RATES[0] <= trial.suggest_float("learning_rate", *RATES, log=True) <= RATES[1]
    assert caplog.text.count("drawn at random") == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvidenceSampler({}, RATES), "at least one"),
        (lambda: EvidenceSampler(SIZES, (0.0, 0.1)), r"positive \(low, high\)"),
        (lambda: EvidenceSampler(SIZES, RATES, scores={"mha": 1.0}), "scores must have each of"),
        (lambda: EvidenceSampler(SIZES, RATES, kinds={"mha": "a"}), "kinds must have each of"),
        (lambda: EvidenceSampler(SIZES, RATES, allowed=lambda on: False), "must leave some set of .*refused every one"),
    ],
)
def test_what_cannot_be_is_said(make: Callable[[], EvidenceSampler], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_too_many_sets_to_look_at_and_none_of_them_allowed() -> None:
    switches = {f"s{number}": 100 for number in range(12)}
    study = optuna.create_study(
        sampler=EvidenceSampler(switches, RATES, allowed=lambda on: False), direction="maximize"
    )
    with pytest.raises(ValueError, match="allowed must leave some of the 12 switches' sets"):
        study.ask().suggest_categorical("s0", [False, True])


def test_a_study_of_another_kind_is_refused() -> None:
    study = optuna.create_study(direction="minimize", sampler=EvidenceSampler(SIZES, RATES))
    with pytest.raises(ValueError, match="must maximise one accuracy"):
        study.optimize(accuracy, n_trials=1)
    study = optuna.create_study(direction="maximize", sampler=EvidenceSampler(SIZES, RATES))
    with pytest.raises(ValueError, match="accuracy in 0 to 1, but gave 8"):
        study.optimize(lambda trial: 80 + accuracy(trial), n_trials=2)
