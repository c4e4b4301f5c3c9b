"""Coverage-guided fuzzing of the client's decoders: `tox -e fuzz`.

The first byte chooses the decoder of the rest. The folder .fuzz keeps every input that breaks one.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fonte"]):
    from fonte import arrow, client

from support.answers import END, START, arrow_streams, assert_promised, json_bodies

FOLDER = Path(".fuzz")
MEDIA_TYPES = [arrow.MEDIA_TYPE, "application/json"]
HTTP = client.connect("http://127.0.0.1")


def try_one(data):
    """Fetch an answer without a network: it gives arrays as promised, or a FonteError."""
    client._get = lambda *_: (MEDIA_TYPES[data[:1] == b"J"], data[1:])
    try:
        timestamps, columns = client.fetch("http://127.0.0.1", START, END, ["power"], HTTP)
    except client.FonteError as error:
        assert str(error).isprintable()
    else:
        assert_promised(timestamps, columns, ["power"])


def main():
    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for kind, bodies in ((b"A", arrow_streams()), (b"J", json_bodies())):
        for number, body in enumerate(bodies):
            (corpus / f"{kind.decode()}{number}").write_bytes(kind + body)
    atheris.Setup([sys.argv[0], f"-artifact_prefix={FOLDER}/", *sys.argv[1:], str(corpus)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
