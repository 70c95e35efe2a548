"""Random numbers, precision and device of one thread; copies of modules; forked processes."""

from __future__ import annotations

import copy
import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse._defaults import copy_module, seeded, standard_defaults


@pytest.fixture
def foreign_defaults() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def constant() -> Tensor:
    return torch.full((40,), 0.5)


DRAWS: dict[str, Callable[[], Tensor]] = {
    "rand": lambda: torch.rand(3),
    "randn": lambda: torch.randn(20),
    "randint": lambda: torch.randint(5, (3,)),
    "randperm": lambda: torch.randperm(6),
    "rand_like": lambda: torch.rand_like(constant()),
    "randn_like": lambda: torch.randn_like(constant()),
    "uniform_": lambda: constant().uniform_(),
    "normal_": lambda: constant().normal_(),
    "bernoulli_": lambda: constant().bernoulli_(0.5),
    "bernoulli": lambda: torch.bernoulli(constant()),
    "exponential_": lambda: constant().exponential_(),
    "random_": lambda: constant().random_(),
    "normal": lambda: torch.normal(constant(), 1.0),
    "multinomial": lambda: torch.multinomial(constant(), 2),
    "poisson": lambda: torch.poisson(constant()),
    "dropout": lambda: F.dropout(constant()),
    "dropout2d": lambda: F.dropout2d(constant().view(1, 40, 1, 1)),
    "alpha_dropout": lambda: F.alpha_dropout(constant(), training=True),
    "rrelu": lambda: F.rrelu(-constant(), training=True),
    "gumbel_softmax": lambda: F.gumbel_softmax(constant()),
    "convolution": lambda: nn.Conv2d(3, 4, 3).weight.detach(),
    "linear": lambda: nn.Linear(3, 4).bias.detach(),
    "lstm": lambda: nn.LSTM(3, 4).weight_hh_l0.detach(),
    "orthogonal": lambda: nn.init.orthogonal_(torch.zeros(3, 3)),
    "trunc_normal": lambda: nn.init.trunc_normal_(torch.zeros(3, 3)),
    "kaiming_normal": lambda: nn.init.kaiming_normal_(torch.zeros(3, 3)),
    "attention": lambda: nn.MultiheadAttention(4, 2, dropout=0.5)(*[torch.ones(3, 1, 4)] * 3)[0].detach(),
}
every = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def with_global_seed(draw: Callable[[], Tensor]) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return draw()


@every
def test_numbers_are_those_of_manual_seed_and_the_global_generator_stays(draw) -> None:
    before = torch.get_rng_state()
    with seeded(5):
        drawn = draw()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, with_global_seed(draw))


@every
def test_the_users_defaults_change_nothing(draw, request) -> None:
    expected = with_global_seed(draw)
    request.getfixturevalue("foreign_defaults")
    with seeded(5):
        drawn = draw()
    assert drawn.dtype == expected.dtype and drawn.device == expected.device
    assert torch.equal(drawn, expected)


MADE: dict[str, Callable[[], Tensor]] = {
    "zeros": lambda: torch.zeros(2),
    "tensor": lambda: torch.tensor(1.5),
    "tensor of ints": lambda: torch.tensor([1, 2]),
    "arange": lambda: torch.arange(3.0),
    "quotient of ints": lambda: torch.arange(3) / 2,
    "product with a number": lambda: torch.arange(3) * 2.5,
    "full": lambda: torch.full((2,), 1.0),
    "linspace": lambda: torch.linspace(0, 1, 5),
    "fftfreq": lambda: torch.fft.fftfreq(5),
    "eye": lambda: torch.eye(2),
    "double stays double": lambda: torch.zeros(2, dtype=torch.float64).cos() + 1,
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_is_made_without_saying_is_standard(make, request) -> None:
    expected = make()
    request.getfixturevalue("foreign_defaults")
    with standard_defaults():
        made = make()
    assert made.dtype == expected.dtype and made.device == expected.device
    assert torch.equal(made, expected)


def test_a_generator_that_is_given_is_used() -> None:
    with seeded(5):
        first = torch.rand(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(1)))


def test_a_restart_leaves_no_trace() -> None:
    with seeded(5) as draws:
        expected = torch.rand(4)
    with seeded(5) as draws:
        first = torch.rand(2)
        with draws.restarted(9):
            inner = torch.rand(3)
        second = torch.rand(2)
    assert not torch.equal(inner[:2], second)
    with seeded(9):
        assert torch.equal(torch.rand(3), inner)
    with seeded(5):
        assert torch.equal(torch.stack([torch.rand(2), torch.rand(2)]).flatten(), torch.cat([first, second]))
    assert len(expected) == 4


def test_states_can_be_stored() -> None:
    with seeded(5) as draws:
        torch.rand(3)
        state = draws.state_dict()
        expected = torch.randn(5)
    with seeded(0) as other:
        other.load_state_dict(state)
        assert torch.equal(torch.randn(5), expected)


def test_threads_do_not_see_one_another() -> None:
    drawn: dict[int, list[float]] = {}

    def draw(seed: int) -> None:
        with seeded(seed):
            drawn[seed] = [float(nn.Dropout(0.5)(torch.rand(3)).sum()) for _ in range(200)]

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(drawn)
    for seed in range(4):
        draw(seed)
        assert drawn[seed] == together[seed]


# ---------------------------------------------------------------------- copies
class Keeps(nn.Module):
    """Keeps what it has computed, alone and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.kept: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.last, self.kept["all"] = y, [y]
        return y


def test_modules_that_keep_activations_can_be_copied() -> None:
    with seeded(0):
        module = Keeps()
    x = torch.ones(1, 2)
    y = module(x)
    with pytest.raises(RuntimeError):
        copy.deepcopy(module)
    twin = copy_module(module)
    assert torch.equal(twin.last, y) and twin.last is twin.kept["all"][0] and twin.last.grad_fn is None
    assert twin.layer.weight is not module.layer.weight and twin.layer.weight.requires_grad
    assert torch.equal(twin(x), y)


# ---------------------------------------------------------------------- forks
def _work(queue: multiprocessing.Queue[int]) -> None:
    import warnings

    from skinverse import Tikhonov

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Tikhonov().fit().predict(torch.ones(2, 1000, 1000).numpy())
    queue.put(sum("forked" in str(w.message) for w in seen))


def _parent(queue: multiprocessing.Queue[int]) -> None:
    torch.set_num_threads(2)
    torch.ones(2000, 2000).exp()  # starts the threads
    child = multiprocessing.get_context("fork").Process(target=_work, args=(queue,))
    child.start()
    child.join(60)
    child.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_process_says_so_and_does_not_hang() -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[int] = context.Queue()
    parent = context.Process(target=_parent, args=(queue,))
    parent.start()
    assert queue.get(timeout=100) == 1
    parent.join()
