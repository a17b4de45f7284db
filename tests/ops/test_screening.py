"""The screen misses no entry, however the numbers are chosen against its bound."""

from itertools import product

import pytest
import torch

from hfsae.ops import Workspace, screen, screen_batch_top_k, screen_top_k, screening

WAYS = ["bfloat16", "float32", "as_on_a_gpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=WAYS, autouse=True)
def device(request, monkeypatch, way_of_gpu):
    """Of tensors. The product is in bfloat16 also where a processor would not take it by itself."""
    low = torch.float32 if request.param == "float32" else torch.bfloat16
    monkeypatch.setattr(screening, "_low_dtype", lambda device: low)
    if request.param == "as_on_a_gpu":  # on the CPU, and without Triton's interpreter
        way_of_gpu(True, False)
    return torch.device("cuda" if request.param == "cuda" else "cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def worst_rounding(*shape: int) -> torch.Tensor:
    """Numbers that bfloat16 rounds down by all but half of its last digit."""
    bits = (normal(*shape).abs() + 1).view(torch.int32) & -65536
    return (bits | 0x7FFF).view(torch.float32)


def tied(n: int, d: int) -> torch.Tensor:
    """Powers of two and halfway cases: many equal products."""
    steps = torch.randint(0, 3, (n, d), generator=torch.Generator().manual_seed(3))
    return (1 + 2.0**-8) * torch.tensor([-1.0, 0.5, 1.0])[steps]


def sparse_rows(n: int, d: int) -> torch.Tensor:
    return normal(n, d) * (normal(n, d, seed=5) > 1.5) * 100


# name: (x [tokens, d], W [d_sae, d], b [d_sae])
HARD = {
    "ordinary": (normal(70, 48), normal(90, 48, seed=1), normal(90, seed=2)),
    "rounded down": (worst_rounding(70, 48), worst_rounding(90, 48), -48.0 * torch.ones(90) * 3),
    "against": (worst_rounding(70, 48), -worst_rounding(90, 48), 48.0 * torch.ones(90) * 3),
    "one token": (normal(1, 33), normal(90, 33, seed=1), torch.zeros(90)),
    "one dimension": (normal(70, 1), normal(90, 1, seed=1), torch.zeros(90)),
    "zero rows": (torch.zeros(70, 16), normal(90, 16), normal(90)),
    "all zero": (torch.zeros(70, 16), torch.zeros(90, 16), torch.zeros(90)),
    "equal values": (tied(70, 16), tied(90, 16), torch.zeros(90)),
    "huge biases": (normal(70, 32), normal(90, 32, seed=1), 1e30 * normal(90)),
    "huge x": (1e17 * normal(70, 32), normal(90, 32, seed=1), normal(90)),
    "huge W": (normal(70, 32), 1e17 * normal(90, 32, seed=1), normal(90)),
    "tiny x": (1e-30 * normal(70, 32), normal(90, 32, seed=1), torch.zeros(90)),
    "tiny both": (1e-25 * normal(70, 32), 1e-20 * normal(90, 32, seed=1), torch.zeros(90)),
    "denormal": (1e-41 * normal(70, 32), normal(90, 32, seed=1), 1e-42 * normal(90)),
    "denormal W": (normal(70, 32), 1e-41 * normal(90, 32, seed=1), torch.zeros(90)),
    "tiny x huge W": (1e-30 * normal(70, 32), 1e18 * normal(90, 32, seed=1), torch.zeros(90)),
    "outlier": (sparse_rows(70, 64), normal(90, 64), normal(90)),
    "norms of all sizes": (
        normal(70, 24) * torch.logspace(-15, 15, 70)[:, None],
        normal(90, 24, seed=1) * torch.logspace(15, -15, 90)[:, None],
        normal(90, seed=2),
    ),
    "cancelling": (
        torch.cat([normal(70, 24), -normal(70, 24)], 1) * 1e6,
        torch.cat([normal(90, 24, seed=1)] * 2, 1),
        1e-3 * normal(90),
    ),
    "wide": (normal(40, 4000), normal(50, 4000, seed=1), normal(50)),
}


@pytest.fixture(params=HARD, ids=lambda name: name.replace(" ", "_"))
def problem(request, device):
    return tuple(t.to(device) for t in HARD[request.param])


def problems(device):
    """(name, x, W, b) of each."""
    return [(name, *(t.to(device) for t in tensors)) for name, tensors in HARD.items()]


def exact(x, W, b) -> torch.Tensor:
    """[d_sae, tokens] in float64."""
    return W.double() @ x.double().T + b.double()[:, None]


def found_pairs(entries) -> torch.Tensor:
    device = entries.latents.device
    pairs = torch.zeros(entries.d_sae, entries.n_tokens, dtype=torch.bool, device=device)
    pairs[entries.latents, entries.tokens] = True
    return pairs


def rounding(x, W, b) -> torch.Tensor:
    """By how much a float32 sum may be off."""
    g = (x.shape[1] + 8) * 2.0**-23
    return g * (W.abs().double() @ x.abs().double().T + b.abs().double()[:, None]) + 1e-37


def test_no_entry_is_missed_and_none_is_made_up(problem):
    x, W, b = problem
    v, off = exact(x, W, b), rounding(x, W, b)
    for quantile in (0.0, 0.5, 0.9, 0.99):
        floor = v.quantile(quantile, dim=1).float()  # of each latent: equal to one of its values
        above = v - floor.double()[:, None]
        pairs = found_pairs(screen(x, W, b, floor, Workspace()))
        assert pairs[above > off].all(), f"missed above quantile {quantile}"
        assert not pairs[above < -off].any(), f"made up above quantile {quantile}"


def test_the_bound_bounds_every_value(device):
    """Before anything is thrown away: X W^T >= x.w + b - floor for all pairs, in float64."""
    for name, x, W, b in problems(device):
        floor = b + normal(len(b), seed=9).to(device) * b.abs().mean()
        bound = screening._bound(x, W, b, floor, Workspace())
        score = bound.W.double() @ bound.X.double().T
        assert (score >= exact(x, W, b) - floor.double()[:, None]).all(), name
        below = bound.W @ bound.X.T <= 0  # as it is computed: what it calls negative is
        above, off = exact(x, W, b - floor), rounding(x, W, b.abs() + floor.abs())
        assert (above <= off)[below].all(), name


def test_the_bound_leaves_room_for_the_errors_of_all_sums(device):
    """Where bfloat16 loses nothing: those of a float32 sum, and of a product by tensor cores."""
    x, W = (normal(n, 48, seed=n).bfloat16().float().to(device) for n in (70, 90))
    b, gap = (normal(90, seed=seed).to(device) for seed in (2, 3))
    bound = screening._bound(x, W, b, b - gap, Workspace())
    room = bound.W.double() @ bound.X.double().T - exact(x, W, b - (b - gap))
    norms = W.double().norm(dim=1)[:, None] * x.double().norm(dim=1)
    biases = 1.5 * 1.02 * gap.abs() + 0.5 * b.abs()
    g = (48 + 8) * 2.0**-23
    assert (room >= g * ((1.5 * 1.03 + 0.5) * norms + biases.double()[:, None])).all()


def tensor_core_product(W: torch.Tensor, X: torch.Tensor, n_at_once: int = 4) -> torch.Tensor:
    """W X^T as tensor cores sum it: numbers are cut where they hang over the largest's 24 bits."""
    total = torch.zeros(len(W), len(X), dtype=torch.float64)
    for W_part, X_part in zip(W.split(n_at_once, 1), X.split(n_at_once, 1), strict=True):
        products = W_part.double()[:, None] * X_part.double()
        addends = torch.cat([total[..., None], products], dim=-1)
        unit = last_place(addends.abs().amax(-1))
        total = (addends / unit[..., None]).trunc().sum(-1) * unit
        total = (total / last_place(total)).trunc() * last_place(total)
    return total


def last_place(x: torch.Tensor) -> torch.Tensor:
    """What the last of 24 bits is worth."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 24)


@pytest.mark.parametrize("device", ["as_on_a_gpu"], indirect=True)
def test_the_bound_holds_for_products_as_tensor_cores_sum_them(device):
    for name, x, W, b in problems(device):
        floor = b + normal(len(b), seed=9) * b.abs().mean()
        bound = screening._bound(x, W, b, floor, Workspace())
        below = tensor_core_product(bound.W, bound.X) <= 0
        above, off = exact(x, W, b - floor), rounding(x, W, b.abs() + floor.abs())
        assert (above <= off)[below].all(), name


def test_the_k_largest_are_found(problem):
    x, W, b = problem
    v, off = exact(x, W, b), rounding(x, W, b)
    for k in (1, 3, 20):
        pairs = found_pairs(screen_top_k(x, W, b, k, Workspace()))
        largest = v.topk(k, dim=0).values
        is_near = ((v - largest[-1]).abs() <= 2 * off) | (v.abs() <= off)
        wanted = (v >= largest[-1]) & (v > 0)
        assert (pairs == wanted)[~is_near].all(), f"k = {k}"
        assert (pairs.sum(0) <= k).all(), f"k = {k}"


def test_the_largest_is_found_where_the_score_of_the_next_is_rounded_up(device):
    """To above 1, where the steps of bfloat16 are twice as wide as below, where both values are."""
    second = (torch.tensor([147.0] * 3 + [146.0] * 4) - 0.45) / 1024  # rounded up, all of them
    rest = second.sum() + 2.0**-18 - 0.75
    high = rest.bfloat16().float()
    first = torch.stack([*torch.full((3,), 0.25), *torch.zeros(2), high, rest - high])
    W = torch.stack([second, first]).to(device)
    x, b = torch.ones(1, 7, device=device), torch.zeros(2, device=device)
    assert second.sum() < first.sum() < 1
    assert screen_top_k(x, W, b, 1, Workspace()).latents.tolist() == [1]


class Guessing:
    """Sums over two processes: the other one has no token, but guesses by which the mean of both
    becomes `floors`."""

    def __init__(self, floors: torch.Tensor) -> None:
        self.floors: torch.Tensor | None = floors
        self.n_above: list[int] = []

    def __call__(self, own: torch.Tensor) -> torch.Tensor:
        if own.ndim == 0:
            self.n_above.append(int(own))
        elif self.floors is not None:  # first come the guesses: ..., 0, tokens, processes
            others, self.floors = 2 * self.floors.to(own) - own[:-3], None
            return own + torch.cat([others, own.new_tensor([0, 0, 1])])
        return own


def test_the_largest_of_the_batch_are_found(problem):
    """Also where the guessed floor lies too high at first."""
    x, W, b = problem
    v, off = exact(x, W, b), rounding(x, W, b)
    for k, is_too_high in product((1, 3, 20), (False, True)):
        highest = v.flatten().topk(max(1, k * len(x) // 100)).values[-1:].clamp(min=0)
        guesses = {"summed": Guessing(highest.expand(3))} if is_too_high else {}
        pairs = found_pairs(screen_batch_top_k(x, W, b, k, Workspace(), **guesses))
        least = v.flatten().topk(min(k * len(x), v.numel())).values[-1]
        # A near one may be a few rounding errors off in value, and with it the place of the cut.
        is_near = ((v - least).abs() <= 2 * (off + off[v >= least].max())) | (v.abs() <= off)
        assert (pairs == (v >= least) & (v > 0))[~is_near].all(), (k, is_too_high)
        n = min(k * len(x), int((v > off).sum()))
        assert pairs.sum() >= n, (k, is_too_high)


def test_a_batch_without_tokens_has_no_entries():
    x, W, b = torch.zeros(0, 16), torch.randn(40, 16), torch.zeros(40)
    space = Workspace()
    found = [
        screen(x, W, b, b, space),
        screen_top_k(x, W, b, 4, space),
        screen_batch_top_k(x, W, b, 4, space),
    ]
    assert [(len(at), at.n_tokens, at.d_sae) for at in found] == [(0, 0, 40)] * 3


def test_a_guess_that_is_too_high_is_made_good():
    x, W, b = HARD["ordinary"]
    n = 8 * len(x)
    values = exact(x, W, b).flatten().sort(descending=True).values
    guesses = Guessing(values[[n // 10, n // 2, n + n // 3]])
    found = screen_batch_top_k(x, W, b, 8, Workspace(), guesses)
    tenth, half, more = guesses.n_above
    assert 0 < tenth < half < n <= more < 2 * n
    again = screen_batch_top_k(x, W, b, 8, Workspace())
    assert torch.equal(found.tokens, again.tokens) and torch.equal(found.values, again.values)
    assert len(found) == 8 * len(x)


def test_values_are_those_of_a_float32_sum(device):
    for name, x, W, b in problems(device):
        entries = screen(x, W, b, torch.full_like(b, -1e37), Workspace())
        assert len(entries) == len(x) * len(W), name
        v = exact(x, W, b)[entries.latents, entries.tokens]
        off = rounding(x, W, b)[entries.latents, entries.tokens]
        assert ((entries.values.double() - v).abs() <= off).all(), name


def test_ordinary_data_has_few_candidates_that_fall_through():
    x, W = normal(256, 256), torch.nn.functional.normalize(normal(1024, 256, seed=1), dim=1)
    floor = torch.full((1024,), 2.5)
    bound = screening._bound(x, W, torch.zeros(1024), floor, Workspace())
    n_candidates = int((bound.W @ bound.X.T > 0).sum())
    n_entries = len(screen(x, W, torch.zeros(1024), floor, Workspace()))
    assert n_entries <= n_candidates < 1.25 * n_entries


def test_more_latents_than_sixteen_bits_and_more_tokens_than_a_block():
    x, W = normal(600, 4), normal(70_000, 4, seed=1)
    floor = torch.full((70_000,), 9.0)
    entries = screen(x, W, torch.zeros(70_000), floor, Workspace())
    expected = (W @ x.T > 9).nonzero()
    assert len(expected) > 1000
    assert torch.equal(torch.stack([entries.latents, entries.tokens], 1), expected)
    assert torch.equal(entries.tokens[entries.by_token], expected[:, 1].sort().values)
