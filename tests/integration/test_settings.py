"""The settings: URLs, admins and names, from the environment and from the file .env."""

import socket
import threading

import pytest
from support.faulty import accepted
from support.project import ROOT, SETTINGS

from fonte_alvo import command, engine, settings

URL_VARIABLES = {"FONTE_DATABASE_URL": settings.fonte_database_url, "ALVO_DATABASE_URL": settings.alvo_database_url}


@pytest.fixture
def env_file(monkeypatch, tmp_path):
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path))
    return tmp_path / ".env"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
@pytest.mark.parametrize("name", URL_VARIABLES)
def test_every_scheme_of_postgresql_selects_psycopg2(monkeypatch, name, scheme):
    monkeypatch.setenv(name, f"{scheme}://user:p%40ss@host:1234/base")
    url = URL_VARIABLES[name]()
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.port, url.database) == ("user", "p@ss", "host", 1234, "base")
    assert "p@ss" not in str(url) + repr(url)


@pytest.mark.parametrize("name", URL_VARIABLES)
@pytest.mark.parametrize(
    "value",
    [
        "secret",
        "mysql://u:secret@h/d",
        "postgresql+psycopg://u:secret@h/d",
        "postgresql://u:sec/ret@h:x/d",
        "postgresql://u:s@secret@127.0.0.1:1/d",
        "postgresql://secret@/x@127.0.0.1:1/d",
        "sqlite://",
        "://secret",
        "postgresql://u%00:secret@127.0.0.1:1/d",
        *("postgresql://u:sec\udce9@h/d", "postgresql://\udce9@sec/d", "postgresql://h/d?application_name=\udce9"),
    ],
)
def test_an_invalid_postgresql_url_is_named_but_never_repeated(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(settings.SettingsError) as failure:
        URL_VARIABLES[name]()
    assert str(failure.value).startswith(f"{name} is not a URL of PostgreSQL: expected postgresql://")
    assert "sec" not in str(failure.value)
    # The line that is printed has the whole hint.
    assert command.clean(str(failure.value)) == str(failure.value)


def test_a_given_url_overrides_the_environment_and_is_named_as_given(monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", "http://localhost:1")
    monkeypatch.setenv("ALVO_DATABASE_URL", "postgresql://h/environment")
    assert settings.fonte_api_url("http://localhost:2") == "http://localhost:2"
    assert settings.alvo_database_url("postgresql://h/given").database == "given"
    with pytest.raises(settings.SettingsError, match="^the given URL of Fonte is not a URL of HTTP"):
        settings.fonte_api_url("localhost:2")
    with pytest.raises(settings.SettingsError, match="^the given URL of Alvo is not a URL of PostgreSQL"):
        settings.alvo_database_url("sqlite://")


def test_a_child_has_the_environment_and_its_own_settings(monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", "http://localhost:1")
    monkeypatch.setenv("ALVO_DATABASE_URL", "postgresql://h/environment")
    child = settings.child_environment(FONTE_API_URL="http://localhost:2")
    assert (child["FONTE_API_URL"], child["ALVO_DATABASE_URL"]) == ("http://localhost:2", "postgresql://h/environment")
    assert settings.fonte_api_url() == "http://localhost:1"


@pytest.mark.parametrize(
    "query",
    [
        "async=1",
        "async_=1",
        "options=-csearch_path=a&options=b",
        "user=a&user=b",
        "dsn=x",
        "cursor_factory=x",
        "plugin=x",
    ],
)
@pytest.mark.parametrize("name", URL_VARIABLES)
def test_an_unusable_url_parameter_is_named(monkeypatch, name, query):
    monkeypatch.setenv(name, f"postgresql://u:secret@127.0.0.1:1/d?{query}")
    with pytest.raises(settings.SettingsError) as failure:
        URL_VARIABLES[name]()
    parameter = query.partition("=")[0]
    assert (
        str(failure.value)
        == f"{name} has a parameter that cannot be used, {parameter}: expected those of libpq, once each"
    )


@pytest.mark.parametrize("port", [0, 65536, 2**31, 2**64])
def test_an_invalid_port_is_one_line(port):
    with pytest.raises(engine.DatabaseError) as failure, engine.failures("Alvo", "mend it"):
        engine.create(engine.parse(f"postgresql://u:secret@127.0.0.1:{port}/d?connect_timeout=1"), "test").connect()
    assert "secret" not in str(failure.value)
    assert str(failure.value).isprintable()


@pytest.mark.parametrize(("variable", "value"), [("PGSERVICE", "nonsense"), ("PGSSLMODE", "nonsense")])
def test_a_libpq_variable_that_prevents_a_connection_is_named(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(engine.DatabaseError, match=f"nonsense.*the environment sets {variable}") as failure:
        with engine.failures("Alvo", "mend it"):
            engine.create(engine.parse("postgresql://u@127.0.0.1:1/d"), "test").connect()
    assert str(failure.value).isprintable()


def test_a_refusal_in_latin_1_is_decoded_on_one_line():
    said = "S\0autenticação do tipo senha falhou para o usuário".encode("latin-1").replace(b"S\0", b"SFATAL\0C28P01\0M")
    message = said + b"\0\0"
    refusal = b"E" + (len(message) + 4).to_bytes(4, "big") + message
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse():
            # libpq connects once or twice; then the listener closes.
            while connection := accepted(listener):
                with connection:
                    if connection.recv(8)[4:] == (80877103).to_bytes(4, "big"):  # it asks for TLS
                        connection.sendall(b"N")
                        connection.recv(8)
                    connection.recv(1000)
                    connection.sendall(refusal)

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        url = f"postgresql://u:secret@127.0.0.1:{listener.getsockname()[1]}/d?gssencmode=disable&sslmode=disable"
        with pytest.raises(engine.DatabaseError, match="autenticação do tipo senha falhou para o usuário; mend it"):
            with engine.failures("Alvo", "mend it"):
                engine.create(engine.parse(url), "test").connect()


SIDES = ("FONTE", "ALVO")
ADMIN_URL = "postgresql://u:p%40ss@h/d"


@pytest.mark.parametrize("side", SIDES)
def test_an_admin_is_a_url_and_a_token_and_neither_is_shown(monkeypatch, side):
    token = "abcdXYZ0189-._~+/=="
    monkeypatch.setenv(f"{side}_ADMIN_DATABASE_URL", ADMIN_URL)
    monkeypatch.setenv(f"{side}_ADMIN_TOKEN", token)
    url, secret = settings.admin(side)
    assert (url.drivername, url.password, secret.get_secret_value()) == ("postgresql+psycopg2", "p@ss", token)
    assert token not in f"{(url, secret)} {secret}"
    assert "p@ss" not in f"{(url, secret)} {url}"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("url", "token"), [("", "a" * 16), (ADMIN_URL, ""), ("", "short"), ("no URL", ""), ("", "")])
def test_an_incomplete_admin_is_ignored(monkeypatch, side, url, token):
    monkeypatch.setenv(f"{side}_ADMIN_DATABASE_URL", url)
    monkeypatch.setenv(f"{side}_ADMIN_TOKEN", token)
    assert settings.admin(side) is None


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("url", "token", "named"),
    [
        *(
            (ADMIN_URL, token, "TOKEN")
            for token in ("secret-15-chars", "secret with a blank", "secretsécretsecret", "=" * 16)
        ),
        ("mysql://u:secret@h/d", "a" * 16, "DATABASE_URL"),
    ],
)
def test_an_invalid_admin_is_named_but_never_repeated(monkeypatch, side, url, token, named):
    monkeypatch.setenv(f"{side}_ADMIN_DATABASE_URL", url)
    monkeypatch.setenv(f"{side}_ADMIN_TOKEN", token)
    with pytest.raises(settings.SettingsError, match=f"^{side}_ADMIN_{named} is n.*: expected") as failure:
        settings.admin(side)
    assert "secret" not in str(failure.value)
    assert token not in str(failure.value)


@pytest.mark.parametrize(
    "value",
    ["http://localhost:8000", "https://user:pw@h.example/api/", "http://[::1]:8000", "http://h:1", "http://h:65535"],
)
def test_an_http_url_is_used_unchanged(monkeypatch, value):
    monkeypatch.setenv("FONTE_API_URL", value)
    assert settings.fonte_api_url() == value


@pytest.mark.parametrize(
    "value",
    [
        *("localhost:8000", "http://xn--/", "ftp://host", "http://", "http://[::1", "http://host:port", "x"),
        *(f"http://h:{port}" for port in (0, 65536, 99999, -1, 2**64)),
        *("http://\udce9/", "http://h/\udce9", "http://u:\udce9@h/"),
    ],
)
def test_an_invalid_http_url_is_refused(monkeypatch, value):
    monkeypatch.setenv("FONTE_API_URL", value)
    with pytest.raises(settings.SettingsError, match="FONTE_API_URL is not a URL of HTTP"):
        settings.fonte_api_url()


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_variable_counts_as_unset(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("FONTE_API_URL", value)
        monkeypatch.setenv("FONTE_DATABASE_URL", value)
    assert settings.fonte_api_url() is None
    assert settings.database_is_embedded("Fonte")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("setting", ["ORIGINS", "HOSTS"])
def test_an_allowed_name_that_is_not_utf_8_is_refused(monkeypatch, side, setting):
    monkeypatch.setenv(f"{side}_ALLOWED_{setting}", "http://caf\udce9" if setting == "ORIGINS" else "caf\udce9")
    with pytest.raises(settings.SettingsError, match=f"^{side}_ALLOWED_{setting} names .*caf: expected"):
        settings.allowed(side)


def test_the_partitions_of_dagster_have_settings(monkeypatch):
    assert (settings.dagster_timezone(), settings.dagster_start_date()) == ("UTC", None)
    monkeypatch.setenv("DAGSTER_TIMEZONE", "America/Sao_Paulo")
    monkeypatch.setenv("DAGSTER_START_DATE", "2026-01-01")
    assert (settings.dagster_timezone(), settings.dagster_start_date()) == ("America/Sao_Paulo", "2026-01-01")


def test_the_environment_overrides_the_file(monkeypatch, env_file):
    env_file.write_text('FONTE_API_URL="http://from-file:1"\nALVO_DATABASE_URL=postgresql://u:p@from-file/d\n')
    assert settings.fonte_api_url() == "http://from-file:1"
    monkeypatch.setenv("ALVO_DATABASE_URL", "postgresql://u:p@from-environment/d")
    assert settings.alvo_database_url().host == "from-environment"


def test_a_value_in_the_file_may_refer_to_another_one(env_file):
    env_file.write_text("PORT=8001\nFONTE_API_URL=http://from-file:${PORT}\n")
    assert settings.fonte_api_url() == "http://from-file:8001"


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ("ALVO_DATABASE_URL=${ALVO_DB_URL}", "ALVO_DB_URL"),
        ("ALVO_DATABASE_URL='${ALVO_DATABASE_URL}'", "ALVO_DATABASE_URL"),
        ("ALVO_DATABASE_URL=postgresql://u:${PASSWORD}@h/d", "PASSWORD"),
        ('HOST=h\n\nexport ALVO_DATABASE_URL="postgresql://u:secret@${HOST}:${PORT}/d"', "PORT"),
        ("ALVO_DATABASE_URL=${URL}\nURL=postgresql://h/d", "URL"),
        ("HOST=${NAME}\nURL=postgresql://${HOST}/d\nALVO_DATABASE_URL=${URL}", "NAME"),
    ],
    ids=["whole", "itself", "part", "one of two", "set below", "through others"],
)
def test_a_reference_to_a_name_that_nothing_sets_is_an_error(monkeypatch, env_file, content, missing):
    env_file.write_text(f"{content}\nFONTE_API_URL=http://h\n")
    with pytest.raises(settings.SettingsError) as failure:
        settings.alvo_database_url()
    said = f"{env_file}: ALVO_DATABASE_URL refers to {missing}, which neither a line above it nor the environment sets"
    assert str(failure.value) == said
    # A value that nobody asks for may be another program's.
    assert settings.fonte_api_url() == "http://h"


@pytest.mark.parametrize("value", ["${NAME:-}", "${EMPTY}", "", '""'])
def test_an_explicitly_empty_value_counts_as_unset(env_file, value):
    env_file.write_text(f"EMPTY=\nALVO_DATABASE_URL={value}\n")
    assert settings.database_is_embedded("Alvo")


@pytest.mark.parametrize("name", SETTINGS[1:])
def test_every_setting_may_be_empty(env_file, name):
    env_file.write_text(f"{name}=\n")
    assert settings.services_are_external() is False
    assert (settings.fonte_api_url(), settings.dagster_timezone(), settings.dagster_start_date()) == (None, "UTC", None)
    for side in ("Fonte", "Alvo"):
        assert settings.database_is_embedded(side)
        assert (settings.admin(side), settings.allowed(side)) == (None, {"origins": [], "hosts": []})


@pytest.mark.parametrize("value", ["postgresql://h/${NAME:-d}", "postgresql://h/${DATABASE}", "postgresql://${HOST}/d"])
def test_a_reference_may_have_a_default_or_name_a_variable_of_the_environment(monkeypatch, env_file, value):
    monkeypatch.setenv("HOST", "h")
    env_file.write_text(f"DATABASE=d\nALVO_DATABASE_URL={value}\n")
    url = settings.alvo_database_url()
    assert (url.host, url.database) == ("h", "d")


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("two\n  lines\t here"), "two lines here"), (TimeoutError(), "TimeoutError")]
)
def test_a_reason_is_one_line_and_never_empty(error, said):
    assert engine.reason(error) == said


def test_names_of_others_in_the_file_are_no_mistake(env_file):
    env_file.write_text("export HTTP_PROXY\nALVO_SITE=a\nFONTE_API_URL=http://a\nALVO_DATABASE_URL=postgresql://h/d\n")
    assert (settings.fonte_api_url(), settings.alvo_database_url().host) == ("http://a", "h")
    assert settings.allowed("Alvo") == {"origins": [], "hosts": []}
    assert settings.admin("Alvo") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"FONTE_API_URL=http://a\nALVO_DATABASE_URL: postgresql://u:secret@h/d\n", "line 2: expected NAME=value"),
        (b'ALVO_DATABASE_URL="postgresql://u:secret@h/d\n', "line 1: expected NAME=value"),
        (b"FONTE_API_URL=http://a\nALVO_DATABASE_URL\n", "line 2: expected ALVO_DATABASE_URL=value"),
        (b"export ALVO_DATABASE_URL # none\n", "line 1: expected ALVO_DATABASE_URL=value"),
        *(
            (text.encode(encoding), "is not UTF-8: save it as UTF-8$")
            for text in ("ALVO_DATABASE_URL=postgresql://u:secret@h/d\n", "# café\r\n")
            for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
        ),
        (b"# caf\xe9\n", "is not UTF-8: save it as UTF-8$"),
        (b"FONTE_API_URL=http://a\0\n", "is not UTF-8: save it as UTF-8$"),
        (None, "cannot be read"),
    ],
)
def test_an_unreadable_file_is_an_error(env_file, content, said):
    env_file.write_bytes(content) if content else env_file.mkdir()
    with pytest.raises(settings.SettingsError, match=said) as failure:
        settings.alvo_database_url()
    assert "secret" not in str(failure.value)


def test_a_home_that_cannot_be_searched_is_named(monkeypatch):
    monkeypatch.setenv("FONTE_ALVO_HOME", f"/{'x' * 300}")
    with pytest.raises(
        settings.SettingsError, match=r"/\.env cannot be read: File name too long; FONTE_ALVO_HOME names another"
    ):
        settings.fonte_api_url()


def test_a_tilde_in_the_name_of_home_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FONTE_ALVO_HOME", "~/fa")
    assert settings.home() == tmp_path / "fa"


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The settings of an installed wheel, beside no checkout."""
    monkeypatch.delenv("FONTE_ALVO_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(settings, "__file__", str(tmp_path / "site-packages" / "fonte_alvo" / "settings.py"))


@pytest.mark.parametrize(
    ("data", "expected"), [("/data", "/data"), ("data", "/u/.local/share"), ("", "/u/.local/share")]
)
def test_only_an_absolute_folder_of_data_is_used(monkeypatch, installed, data, expected):
    monkeypatch.setenv("HOME", "/u")
    monkeypatch.setenv("XDG_DATA_HOME", data)
    assert str(settings.home()) == f"{expected}/fonte-alvo"


@pytest.mark.parametrize("given", [None, "~nobody-of-this-name/fa"])
def test_an_unknown_home_folder_is_a_setting_to_make(monkeypatch, installed, given):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 3)
    if given:
        monkeypatch.setenv("FONTE_ALVO_HOME", given)
    with pytest.raises(settings.SettingsError, match="set FONTE_ALVO_HOME to a folder$"):
        settings.home()


def test_a_byte_order_mark_is_ignored(env_file):
    env_file.write_bytes(b"\xef\xbb\xbfALVO_DATABASE_URL=postgresql://named/d\r\nFONTE_API_URL=http://b\r\n")
    assert settings.alvo_database_url().host == "named"
    assert settings.fonte_api_url() == "http://b"


@pytest.mark.parametrize("name", ["ALVO_DATABSE_URL", "ALVO_DATABASE_UR", "alvo_DATABASE_URL", "ALVO_DATABASE_URL_"])
@pytest.mark.parametrize("in_file", [True, False])
def test_a_misspelt_name_is_an_error(monkeypatch, env_file, name, in_file):
    if in_file:
        env_file.write_text(f"{name}=postgresql://u:secret@h/d\n")
    else:
        monkeypatch.setenv(name, "postgresql://u:secret@h/d")
    with pytest.raises(settings.SettingsError) as failure:
        settings.alvo_database_url()
    assert f"sets {name}, which nothing reads, and not ALVO_DATABASE_URL: correct its name" in str(failure.value)
    assert (".env" in str(failure.value)) == in_file
    assert ("if it is another program's, set ALVO_DATABASE_URL too" in str(failure.value)) != in_file
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    "line",
    [
        "ALVO_DB_URL={}",
        "ALVO_DATABASE={}",
        "ALVO_URL={}",
        "ALVO_POSTGRES_URL={}",
        "alvo_url={}",
        "ALVO={}",
        "ALVO-DATABASE-URL={}",
        "$env:ALVO_DATABASE_URL={}",
        "$env:ALVO_DATABASE_URL = '{}'",
        '"ALVO_DATABASE_URL"={}',
        "export ALVO_DB_URL={}",
    ],
)
def test_a_name_of_the_same_side_that_nothing_reads_is_an_error_in_the_file(env_file, line):
    env_file.write_text(line.format("postgresql://u:secret@h/d") + "\nFONTE_READER_PASSWORD=x\nALVORADA_URL=http://h\n")
    with pytest.raises(settings.SettingsError) as failure:
        settings.alvo_database_url()
    name = line.removeprefix("export ").partition("=")[0].strip()
    said = f"{env_file} sets {name}, which nothing reads, and not ALVO_DATABASE_URL: correct its name"
    assert str(failure.value) == said
    assert settings.database_is_embedded("Fonte")


def test_in_a_reference_the_environment_wins_over_the_file(env_file, monkeypatch):
    """Compose reads the same file this way."""
    env_file.write_text("CONNECTOR_PORT=8000\nFONTE_API_URL=http://localhost:${CONNECTOR_PORT}\n")
    assert settings.fonte_api_url() == "http://localhost:8000"
    monkeypatch.setenv("CONNECTOR_PORT", "8001")
    assert settings.fonte_api_url() == "http://localhost:8001"


def test_a_misspelt_name_in_the_file_is_compared_with_all_names(env_file):
    env_file.write_text("FONTE_ADMIN_TOKENS=x\n")
    with pytest.raises(settings.SettingsError, match=r"sets FONTE_ADMIN_TOKENS, .* and not FONTE_ADMIN_TOKEN: "):
        settings.fonte_api_url()


def test_a_file_that_names_its_own_folder_is_an_error(env_file):
    """The folder has been chosen before the file is read."""
    env_file.write_text("FONTE_ALVO_HOME=/elsewhere\n")
    with pytest.raises(settings.SettingsError) as failure:
        settings.alvo_database_url()
    said = "sets FONTE_ALVO_HOME, which names this folder: set it in the environment"
    assert str(failure.value) == f"{env_file} {said}"


@pytest.mark.parametrize("line", ["set ALVO_DATABASE_URL={}", "setx ALVO_DATABASE_URL {}", "ENV ALVO_DATABASE_URL={}"])
def test_a_command_that_sets_a_variable_is_no_line_of_the_file(env_file, line):
    env_file.write_text(line.format("postgresql://u:secret@h/d"))
    with pytest.raises(settings.SettingsError, match="line 1: expected NAME=value$"):
        settings.alvo_database_url()


def test_a_name_that_another_value_refers_to_is_read(env_file):
    env_file.write_text("FONTE_HOST=h\nFONTE_DATABASE_URL=postgresql://${FONTE_HOST}/d\n")
    assert settings.fonte_database_url().host == "h"
    assert settings.fonte_api_url() is None


@pytest.mark.parametrize(
    "name", ["ALVO_URL", "ALVO_DB_URL", "TEST_DATABASE_URL", "REMOTE_DATABASE_URL", "DATABASE_URL"]
)
def test_a_name_of_another_program_in_the_environment_is_no_mistake(monkeypatch, name):
    monkeypatch.setenv(name, "postgresql://u:secret@h/d")
    assert settings.database_is_embedded("Alvo")
    assert settings.database_is_embedded("Fonte")


def test_no_name_of_the_example_counts_as_misspelt(env_file):
    lines = (ROOT / ".env.example").read_text().splitlines()
    env_file.write_text("\n".join(line for line in lines if line.partition("=")[0] not in SETTINGS))
    assert "ALVO_DATABASE_PORT" in env_file.read_text()
    assert settings.fonte_api_url() is None
    assert settings.database_is_embedded("Fonte")
    assert settings.admin("Alvo") is None
