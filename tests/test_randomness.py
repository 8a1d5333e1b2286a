"""Seeds by name."""

import pytest
import torch

from ibsgl.randomness import derive_seed, draw, generator


def test_seeds_are_stable_and_distinct():
    # A literal, so that a change of the rule cannot pass unseen: it would change every result.
    assert derive_seed(0, "rise", "000001") == 5875899198782586697
    seeds = {derive_seed(s, m, i) for s in range(3) for m in ("rise", "random") for i in range(50)}
    assert len(seeds) == 300
    # Names are separated: ("a", "bc") is not ("ab", "c").
    assert derive_seed(0, "a", "bc") != derive_seed(0, "ab", "c")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draw_is_one_per_image_or_one_for_all():
    def sample(g):
        return torch.rand(2, generator=g)

    alone = [draw(sample, 1, [generator(0, i)])[0] for i in range(3)]
    together = draw(sample, 3, [generator(0, i) for i in range(3)])
    assert torch.equal(together, torch.stack(alone))
    shared = draw(sample, 3, generator(0))
    assert torch.equal(shared[0], shared[2])
    assert torch.equal(draw(sample, 1, None), draw(sample, 2, None)[:1])
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        draw(sample, 3, [generator(0), generator(1)])
