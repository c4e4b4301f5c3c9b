"""Run a step of the pipeline, such as `python -m brt start`; the Makefile's targets call these steps."""

import logging
import os
import sys
from collections.abc import Callable

from brt import pipeline, services, settings, stand_in
from fonte_alvo import command


def main() -> int:
    """Run the command; returns its exit code."""
    steps: dict[str, tuple[Callable[[], object], str]] = {
        "start": (_start, "start PostgreSQL, the API's stand-in, Prefect and both flows; return when all answer"),
        "stop": (_stop, "stop all of them"),
        "capture": (lambda: print(pipeline.capture_once()), "capture the API's current answer"),
        "load": (lambda: pipeline.refuse_faulty(pipeline.load_new()), "load the new and changed captures"),
        "dbt": (pipeline.model, "build and test the models, describe them, check that the source is fresh"),
        "map": (lambda: print(pipeline.draw()), "draw the last positions"),
        "keeper": (services.keep, "run all services, and restart each one that ends; `start` runs this"),
        "postgres": (services.hold_postgres, "run the embedded PostgreSQL alone until SIGTERM"),
        "stand-in": (lambda: stand_in.serve(settings.stand_in_port()), "run the API's stand-in alone until SIGTERM"),
        "flows": (_serve_flows, "run both flows at their times until SIGTERM"),
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
    stand_in_alone = " (the stand-in)" if settings.api_is_stand_in() else ""
    print(f"API         {command.shown_url(settings.api_url())}{stand_in_alone}")
    print(f"captures    {pipeline.captures_folder()}")
    url = settings.database_url()
    password = f"; the password is in {settings.postgres_folder()}{os.sep}password"
    print(f"PostgreSQL  {url.set(query={})}" + (password if settings.database_is_embedded() else ""))
    print(f"logs        {settings.folder()}{os.sep}*.log")
    print("`make stop` stops all of it, `make map` draws where the buses are, once they are loaded")


def _serve_flows() -> None:
    # Imported here: Prefect takes longer to import than most steps take to run.
    from brt import flows

    flows.serve_both()


def _stop() -> None:
    print("stopped: " + (", ".join(services.stop()) or "nothing ran"))


if __name__ == "__main__":
    command.begin("brt")
    sys.exit(main())
