"""Nonsense in a variable of httpx, OpenSSL, libpq or Python gives a documented exit code and one line at most."""

import subprocess
import sys
from itertools import cycle, islice

import pytest
from support.project import SCRIPTS, bare

from fonte_alvo import embedded

pytestmark = pytest.mark.faults

# httpx: "Environment Variables"; the standard library also reads the lower-case names of proxies.
HTTPX = "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy REQUEST_METHOD NETRC"
# OpenSSL: openssl-env(7).
OPENSSL = """SSL_CERT_FILE SSL_CERT_DIR SSLKEYLOGFILE OPENSSL_CONF OPENSSL_CONF_INCLUDE OPENSSL_CONFIG OPENSSL_ENGINES
OPENSSL_MODULES OPENSSL_MALLOC_FAILURES OPENSSL_MALLOC_FD OPENSSL_MALLOC_SEED OPENSSL_TRACE OPENSSL_WIN32_UTF8
OPENSSL_ia32cap OPENSSL_armcap OPENSSL_ppccap OPENSSL_riscvcap OPENSSL_s390xcap OPENSSL_sparcv9cap OSSL_QFILTER QLOGDIR
CTLOG_FILE RANDFILE"""
# PostgreSQL: "Environment Variables" of libpq.
LIBPQ = """PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGPASSFILE PGREQUIREAUTH PGCHANNELBINDING PGSERVICE
PGSERVICEFILE PGOPTIONS PGAPPNAME PGSSLMODE PGREQUIRESSL PGSSLNEGOTIATION PGSSLCOMPRESSION PGSSLCERT PGSSLKEY
PGSSLCERTMODE PGSSLROOTCERT PGSSLCRL PGSSLCRLDIR PGSSLSNI PGREQUIREPEER PGSSLMINPROTOCOLVERSION PGSSLMAXPROTOCOLVERSION
PGGSSENCMODE PGKRBSRVNAME PGGSSLIB PGGSSDELEGATION PGCONNECT_TIMEOUT PGCLIENTENCODING PGTARGETSESSIONATTRS
PGLOADBALANCEHOSTS PGMINPROTOCOLVERSION PGMAXPROTOCOLVERSION PGDATESTYLE PGTZ PGGEQO PGSYSCONFDIR PGLOCALEDIR PGDATA"""
# Python: "Command line and environment", except those that keep Python from starting (PYTHONHOME, PYTHONIOENCODING and
# the like) or from finding packages (PYTHONEXECUTABLE), and those that make it print more (PYTHONVERBOSE,
# PYTHONINSPECT, PYTHONDEVMODE and the like).
PYTHON = """PYTHONPATH PYTHONSAFEPATH PYTHONSTARTUP PYTHONOPTIMIZE PYTHONBREAKPOINT PYTHONUNBUFFERED PYTHONCASEOK
PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX PYTHONNOUSERSITE PYTHONUSERBASE PYTHONWARNINGS
PYTHONFAULTHANDLER PYTHONASYNCIODEBUG PYTHONCOERCECLOCALE PYTHONNODEBUGRANGES PYTHONPERFSUPPORT PYTHON_COLORS
PYTHON_HISTORY PYTHON_BASIC_REPL LANG LC_ALL LC_CTYPE TZ TMPDIR COLUMNS"""
# A word, bytes that are not UTF-8, and the empty text.
NONSENSE = ["nonsense", "\udcff://[::1:x%", ""]
VARIABLES = " ".join((HTTPX, OPENSSL, LIBPQ, PYTHON)).split()
CONNECT = "lambda: client.connect('https://fonte.example').close() or 0"
HTTPS = f"from fonte_alvo import command; from fonte import client; import sys; sys.exit(command.run('x', {CONNECT}))"
COMMANDS = {
    "etl.py": ([SCRIPTS / "etl.py", "2024-05-20"], (0, 3, 4)),
    "seed.py": ([SCRIPTS / "seed.py", "--once"], (0, 3)),
    "alvo.schema": (["-m", "alvo.schema"], (0, 4)),
    "python -m alvo": (["-m", "alvo", "SELECT 1"], (0, 4)),
    "https": (["-c", HTTPS], (0, 3)),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a running embedded server that holds the default days."""
    home = tmp_path_factory.mktemp("home")
    embedded.url("alvo", home / ".embedded")
    subprocess.run([sys.executable, SCRIPTS / "etl.py", "2024-05-20"], env=bare(home), check=True, capture_output=True)
    return home


@pytest.mark.parametrize("name", COMMANDS)
def test_nonsense_in_a_variable_prints_one_line_at_most(home, tmp_path, name):
    arguments, codes = COMMANDS[name]
    command, wrong = [sys.executable, *arguments], {}
    # Another value per command, so that the five commands together see each variable with all three.
    values = islice(cycle(NONSENSE), list(COMMANDS).index(name), None)
    for variable, value in zip(VARIABLES, values, strict=False):
        environment = {**bare(home), variable: value}
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
        lines = run.stderr.decode(errors="replace").splitlines()
        # The interpreter itself reports a wrong PYTHONWARNINGS.
        by_python = [line for line in lines if variable == "PYTHONWARNINGS" and line.startswith("Invalid -W option")]
        if run.returncode not in codes or len(lines) - len(by_python) > (run.returncode != 0):
            wrong[variable] = (value, run.returncode, lines[-3:])
    assert wrong == {}
