"""Records of a small run, and its files."""

from PIL import Image

CONFIG = {
    "seed": 0,
    "data": {"source": "shapes", "folder": None},
    "guidance": {"mu": 2},
    "models": {"resnet": {"override": {}}, "vgg": {"override": {}}},
    "batch_size": 8,
}

CLAIMS = """# The paper's claims in this run

- Guidance improves localisation: supported with <b>resnet</b>.
- This holds for shapes.

| verdict | claim |
|---|---|
| **supported** | [a link](http://elsewhere.example/) ![a picture](http://elsewhere.example/a.png) |

## Guidance improves localisation

> A quote.
"""

TABLE = """**Table 1.** Localisation on resnet_small. {caption}

| Metric | EBPG | published |
|---|---:|---:|
| Grad CAM | not run | 60.08 |
{rows}

- A footnote with <script>alert(1)</script>.
"""


def record(result_id, metrics=None, artifacts=(), model=None, config=None):
    values = config or {"seed": 0, "data": {"source": "shapes"}, "guidance": {"mu": 2}}
    settings = {"config": values} if model is None else {"model": model, "config": values}
    facts = {"commit": "c0ffee0123", "dirty": True, "data_digest": "0123456789abcdef" * 4}
    return {
        "result_id": result_id,
        "kind": "figure" if result_id.startswith("figure") else "table",
        "settings": settings,
        "metrics": metrics or {},
        "artifacts": [str(path) for path in artifacts],
        "tags": facts,
        "started": 1_700_000_000.0,
        "seconds": 60.0,
    }


def made(folder, rows=("| Ours method | **65.00** | <u>65.07</u> |",)):
    """Records with files: the claims, Table 1 and Figure 3."""
    (folder / "claims.md").write_text(CLAIMS)
    (folder / "table1.md").write_text(TABLE.format(caption="Not comparable. " * 20, rows="\n".join(rows)))
    Image.new("RGB", (2, 2)).save(folder / "figure3.png")
    return [
        record("claims", artifacts=[folder / "claims.csv", folder / "claims.md"]),
        record("table1", artifacts=[folder / "table1.md"], model="resnet"),
        record("figure3", artifacts=[folder / "figure3.png", folder / "removed.pdf"]),
    ]
