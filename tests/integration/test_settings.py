import socket
import threading

import pytest
from support.faulty import accepted
from support.project import ROOT

from fonte_alvo import engine, settings

URL_VARIABLES = {"FONTE_DATABASE_URL": settings.fonte_database_url, "ALVO_DATABASE_URL": settings.alvo_database_url}


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
@pytest.mark.parametrize("name", URL_VARIABLES)
def test_every_spelling_of_a_postgresql_url_means_psycopg2(monkeypatch, name, scheme):
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
    ],
)
def test_what_is_no_postgresql_url_is_named_but_never_repeated(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(settings.SettingsError) as failure:
        URL_VARIABLES[name]()
    assert str(failure.value).startswith(f"{name} is not a URL of PostgreSQL: expected postgresql://")
    assert "sec" not in str(failure.value)


def test_what_is_given_wins_over_the_environment_and_is_not_taken_for_it(monkeypatch):
    monkeypatch.setenv("FONTE_API_URL", "http://localhost:1")
    monkeypatch.setenv("ALVO_DATABASE_URL", "postgresql://h/environment")
    assert settings.fonte_api_url("http://localhost:2") == "http://localhost:2"
    assert settings.alvo_database_url("postgresql://h/given").database == "given"
    with pytest.raises(settings.SettingsError, match="^the given URL of Fonte is not a URL of HTTP"):
        settings.fonte_api_url("localhost:2")
    with pytest.raises(settings.SettingsError, match="^the given URL of Alvo is not a URL of PostgreSQL"):
        settings.alvo_database_url("sqlite://")


def test_a_child_has_the_environment_and_what_is_set_for_it(monkeypatch):
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
def test_a_parameter_of_a_url_that_is_not_libpqs_is_named(monkeypatch, name, query):
    monkeypatch.setenv(name, f"postgresql://u:secret@127.0.0.1:1/d?{query}")
    with pytest.raises(settings.SettingsError) as failure:
        URL_VARIABLES[name]()
    parameter = query.partition("=")[0]
    assert (
        str(failure.value)
        == f"{name} has a parameter that cannot be used, {parameter}: expected those of libpq, once each"
    )


@pytest.mark.parametrize("port", [0, 65536, 2**31, 2**64])
def test_a_port_beyond_its_type_is_one_line(port):
    with pytest.raises(engine.DatabaseError) as failure, engine.failures("Alvo", "mend it"):
        engine.create(engine.parse(f"postgresql://u:secret@127.0.0.1:{port}/d?connect_timeout=1"), "test").connect()
    assert "secret" not in str(failure.value)
    assert str(failure.value).isprintable()


@pytest.mark.parametrize(("variable", "value"), [("PGSERVICE", "nonsense"), ("PGSSLMODE", "nonsense")])
def test_a_variable_of_libpq_that_stops_a_connection_is_named(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(engine.DatabaseError, match=f"nonsense.*the environment sets {variable}") as failure:
        with engine.failures("Alvo", "mend it"):
            engine.create(engine.parse("postgresql://u@127.0.0.1:1/d"), "test").connect()
    assert str(failure.value).isprintable()


def test_a_server_that_refuses_in_latin_1_is_one_line():
    said = "S\0autenticação do tipo senha falhou para o usuário".encode("latin-1").replace(b"S\0", b"SFATAL\0C28P01\0M")
    message = said + b"\0\0"
    refusal = b"E" + (len(message) + 4).to_bytes(4, "big") + message
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse():
            # libpq may come once or twice; then the listener is closed.
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


ADMINS = {"FONTE": settings.fonte_admin, "ALVO": settings.alvo_admin}
ADMIN_URL = "postgresql://u:p%40ss@h/d"


@pytest.mark.parametrize("side", ADMINS)
def test_an_admin_is_a_url_and_a_token_and_neither_is_shown(monkeypatch, side):
    token = "abcdXYZ0189-._~+/=="
    monkeypatch.setenv(f"{side}_ADMIN_DATABASE_URL", ADMIN_URL)
    monkeypatch.setenv(f"{side}_ADMIN_TOKEN", token)
    url, secret = ADMINS[side]()
    assert (url.drivername, url.password, secret.get_secret_value()) == ("postgresql+psycopg2", "p@ss", token)
    assert token not in f"{(url, secret)} {secret}"
    assert "p@ss" not in f"{(url, secret)} {url}"


@pytest.mark.parametrize("side", ADMINS)
@pytest.mark.parametrize(("url", "token"), [("", "a" * 16), (ADMIN_URL, ""), ("", "short"), ("no URL", ""), ("", "")])
def test_half_an_admin_is_none(monkeypatch, side, url, token):
    monkeypatch.setenv(f"{side}_ADMIN_DATABASE_URL", url)
    monkeypatch.setenv(f"{side}_ADMIN_TOKEN", token)
    assert ADMINS[side]() is None


@pytest.mark.parametrize("side", ADMINS)
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
def test_an_admin_that_cannot_be_used_is_named_but_never_repeated(monkeypatch, side, url, token, named):
    monkeypatch.setenv(f"{side}_ADMIN_DATABASE_URL", url)
    monkeypatch.setenv(f"{side}_ADMIN_TOKEN", token)
    with pytest.raises(settings.SettingsError, match=f"^{side}_ADMIN_{named} is n.*: expected") as failure:
        ADMINS[side]()
    assert "secret" not in str(failure.value)
    assert token not in str(failure.value)


@pytest.mark.parametrize("value", ["http://localhost:8000", "https://user:pw@fonte.example/api/", "http://[::1]:8000"])
def test_a_url_of_http_is_taken_as_it_is(monkeypatch, value):
    monkeypatch.setenv("FONTE_API_URL", value)
    assert settings.fonte_api_url() == value


@pytest.mark.parametrize(
    "value", ["localhost:8000", "http://xn--/", "ftp://host", "http://", "http://[::1", "http://host:port", "x"]
)
def test_what_is_no_url_of_http_is_refused(monkeypatch, value):
    monkeypatch.setenv("FONTE_API_URL", value)
    with pytest.raises(settings.SettingsError, match="FONTE_API_URL is not a URL of HTTP"):
        settings.fonte_api_url()


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_variable_is_one_that_is_not_set(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("FONTE_API_URL", value)
        monkeypatch.setenv("FONTE_DATABASE_URL", value)
    assert settings.fonte_api_url() is None
    assert settings.fonte_database_is_embedded()


def test_the_partitions_of_dagster_have_settings(monkeypatch):
    assert (settings.dagster_timezone(), settings.dagster_start_date()) == ("UTC", None)
    monkeypatch.setenv("DAGSTER_TIMEZONE", "America/Sao_Paulo")
    monkeypatch.setenv("DAGSTER_START_DATE", "2026-01-01")
    assert (settings.dagster_timezone(), settings.dagster_start_date()) == ("America/Sao_Paulo", "2026-01-01")


def test_a_file_serves_too_and_the_environment_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path))
    file = tmp_path / ".env"
    file.write_text('FONTE_API_URL="http://from-file:1"\nALVO_DATABASE_URL=postgresql://u:p@from-file/d\n')
    assert settings.fonte_api_url() == "http://from-file:1"
    monkeypatch.setenv("ALVO_DATABASE_URL", "postgresql://u:p@from-environment/d")
    assert settings.alvo_database_url().host == "from-environment"


def test_a_value_of_the_file_may_refer_to_another_one(monkeypatch, tmp_path):
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path))
    file = tmp_path / ".env"
    file.write_text("PORT=8001\nFONTE_API_URL=http://from-file:${PORT}\n")
    assert settings.fonte_api_url() == "http://from-file:8001"


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("two\n  lines\t here"), "two lines here"), (TimeoutError(), "TimeoutError")]
)
def test_a_reason_is_one_line_and_never_empty(error, said):
    assert engine.reason(error) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"FONTE_API_URL=http://a\nALVO_DATABASE_URL: postgresql://u:secret@h/d\n", "line 2: expected NAME=value"),
        (b'ALVO_DATABASE_URL="postgresql://u:secret@h/d\n', "line 1: expected NAME=value"),
        (b"# caf\xe9\n", "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=["colon", "unclosed quote", "Latin-1", "folder"],
)
def test_a_file_that_cannot_be_read_is_an_error_and_not_as_if_it_were_absent(monkeypatch, tmp_path, content, said):
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path))
    file = tmp_path / ".env"
    file.write_bytes(content) if content else file.mkdir()
    with pytest.raises(settings.SettingsError, match=said) as failure:
        settings.alvo_database_url()
    assert "secret" not in str(failure.value)


def test_a_byte_order_mark_is_no_part_of_a_name(monkeypatch, tmp_path):
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path))
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfALVO_DATABASE_URL=postgresql://named/d\r\nFONTE_API_URL=http://b\r\n")
    assert settings.alvo_database_url().host == "named"
    assert settings.fonte_api_url() == "http://b"


@pytest.mark.parametrize("name", ["ALVO_DATABSE_URL", "ALVO_DATABASE_UR", "alvo_DATABASE_URL", "ALVO_DATABASE_URL_"])
@pytest.mark.parametrize("in_file", [True, False])
def test_a_name_that_nobody_reads_but_that_resembles_one_is_named(monkeypatch, tmp_path, name, in_file):
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path))
    if in_file:
        (tmp_path / ".env").write_text(f"{name}=postgresql://u:secret@h/d\n")
    else:
        monkeypatch.setenv(name, "postgresql://u:secret@h/d")
    with pytest.raises(settings.SettingsError) as failure:
        settings.alvo_database_url()
    assert f"sets {name}, which nothing reads, and not ALVO_DATABASE_URL: correct its name" in str(failure.value)
    assert (".env" in str(failure.value)) == in_file
    assert "secret" not in str(failure.value)


def test_the_names_of_the_example_resemble_no_other(monkeypatch, tmp_path):
    monkeypatch.setenv("FONTE_ALVO_HOME", str(tmp_path))
    lines = (ROOT / ".env.example").read_text().splitlines()
    (tmp_path / ".env").write_text("\n".join(line for line in lines if not line.startswith(tuple(settings.KNOWN))))
    assert settings.fonte_api_url() is None
    assert settings.fonte_database_is_embedded()
    assert settings.alvo_admin() is None
