"""No password of an address stands in a log."""

import io
import os
import subprocess
import sys

import pytest

from ibsgl.data.download import Download
from ibsgl.provenance import write_record
from ibsgl.redaction import RedactedStream, redacted

DOWNLOAD = {"archives": [{"name": "a.tar", "md5": "0" * 32, "bytes": 1}], "images": {"test": 1}}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:5000/x", "http://host:5000/x"),
        ("no answer from 'https://host/a?token=secret'.", "no answer from 'https://host/a?…'."),
        ("postgresql://me:se%40cret@db/runs", "postgresql://db/runs"),
        ("two: http://a:secret@x http://y?sig=secret&b=1#/runs", "two: http://x http://y?…#/runs"),
        ("sqlite:///mlflow.db, then http://127.0.0.1:5000/#/experiments/1/runs", None),
        ("url: /x?token=secret/api/2.0/mlflow (caused by", "url: /x?… (caused by"),
        ("my/photos/why?.jpg and/or?no", None),
        ("a@b.c, what? C:\\x", None),
    ],
)
def test_addresses_have_no_users_and_no_queries(text, shown):
    assert redacted(text) == (shown or text)
    assert "secret" not in redacted(text)


def test_a_stream_writes_redacted_lines_also_if_they_come_in_pieces():
    out = io.StringIO()
    stream = RedactedStream(out)
    for piece in ("at http://me:sec", "ret@host\nlast http://h?to", "ken=secret"):
        stream.write(piece)
    stream.close()
    assert out.getvalue() == "at http://host\nlast http://h?…"


@pytest.mark.parametrize("mirror", ["https://me:secret@host/voc/", "https://host/voc?token=secret"])
def test_a_mirror_has_no_password(mirror):
    with pytest.raises(ValueError, match="an address with a user or a token would stand in logs"):
        Download.model_validate(DOWNLOAD | {"mirrors": [mirror]})
    assert Download.model_validate(DOWNLOAD | {"mirrors": ["https://host/voc/", "/mnt/voc"]}).mirrors


def test_the_log_of_mlflow_has_no_password(tmp_path):
    """The follower cannot reach its server, and prints the traceback with the address."""
    facts = {"settings": {}, "metrics": {}, "tags": {}, "started": 0.0, "seconds": 1.0}
    write_record(tmp_path / "records", "a", "table", **facts)
    environment = {"MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "ibsgl.tracking", "run", str(tmp_path / "records"), '{"settings": {}, "targets": ""}'],
        env=os.environ | environment,
        input="FINISHED",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1" in done.stderr
    assert "secret" not in done.stderr + done.stdout
