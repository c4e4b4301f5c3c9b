"""The pipeline by hand: `python -m brt start`, and the other steps; the Makefile calls the same."""

import logging
import os
import sys
from collections.abc import Callable

from brt import pipeline, services, settings, stand_in
from fonte_alvo import command


def main() -> int:
    """Run the command; returns its exit code."""
    steps: dict[str, tuple[Callable[[], object], str]] = {
        "start": (_start, "PostgreSQL, the API's stand-in, Prefect and both flows; returns when all answer"),
        "stop": (_stop, "all of them"),
        "capture": (lambda: print(pipeline.capture_once()), "one capture now"),
        "load": (lambda: pipeline.refuse_faulty(pipeline.load_new()), "what was captured since"),
        "dbt": (pipeline.model, "build and test the models, describe them, check that the source is fresh"),
        "map": (lambda: print(pipeline.draw()), "draw the last positions"),
        "keeper": (services.keep, "all services, each started again when it ends: `start` runs this"),
        "postgres": (services.hold_postgres, "the embedded PostgreSQL alone, until it is ended"),
        "stand-in": (lambda: stand_in.serve(settings.stand_in_port()), "the API's stand-in alone, until it is ended"),
        "flows": (_serve_flows, "both flows at their times, until they are ended"),
    }
    parser = command.Parser(
        prog="python -m brt",
        description=__doc__,
        epilog="\n".join(f"{name:9} {what}" for name, (_, what) in steps.items()),
    )
    parser.add_argument("step", choices=steps)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def run() -> int:
        steps[options.step][0]()
        return 0

    return command.run("brt", run, debug=options.debug)


def _start() -> None:
    services.start()
    print(f"Prefect     http://127.0.0.1:{settings.prefect_port()}")
    print(f"API         {settings.api_url()}" + (" (the stand-in)" if settings.api_is_stand_in() else ""))
    print(f"captures    {pipeline.captures_folder()}")
    url = settings.database_url()
    password = f"; the password is in {settings.postgres_folder()}{os.sep}password"
    print(f"PostgreSQL  {url}" + (password if settings.database_is_embedded() else ""))
    print(f"logs        {settings.folder()}{os.sep}*.log")
    print("`make stop` stops all of it, `make map` draws where the buses are, once they are loaded")


def _serve_flows() -> None:
    # Loaded here, because Prefect takes longer to import than most steps to run.
    from brt import flows

    flows.serve_both()


def _stop() -> None:
    print("stopped: " + (", ".join(services.stop()) or "nothing ran"))


if __name__ == "__main__":
    sys.exit(main())
