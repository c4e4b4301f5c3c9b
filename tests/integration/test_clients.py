"""Generated clients and other programs against both APIs."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from support.project import ROOT, SCRIPTS, alvo_api, connector_over, external, wait_until

import etl
from alvo.api import app as alvo_app
from fonte.connector import app as fonte_app

openapi_generator_cli = pytest.importorskip("openapi_generator_cli", reason="tox -e clients has it")
sync_api = pytest.importorskip("playwright.sync_api", reason="tox -e clients has it")
pytestmark = pytest.mark.clients
TOKEN = "token-of-the-clients"
START, END = datetime(2024, 5, 20, tzinfo=UTC), datetime(2024, 5, 20, 1, tzinfo=UTC)
PERIOD = {"start_timestamp": START, "end_timestamp": END}
ORIGIN = "http://127.0.0.1:{}"
APPS = {"fonte": fonte_app, "alvo": alvo_app}
# Operation id: the parameters, and the number of items in the answer; in an order in which each finds rows.
CALLS = {
    "fonte": {
        "health": ({}, None),
        "columns": ({}, 3),
        "period": ({}, None),
        "data": ({**PERIOD, "columns": ["power"]}, 60),
        "randomize": ({**PERIOD, "step_minutes": 10, "profile": "uniform", "random_seed": 1}, None),
        "delete_data": (PERIOD, None),
    },
    "alvo": {
        "health": ({}, None),
        "signals": ({"name": "power_mean"}, 1),
        "data": ({**PERIOD, "signals": ["power_mean", "power_std"]}, 12),
        "delete_data": (PERIOD, None),
        "delete_signals": ({}, None),
    },
}
REVERSED = {"start_timestamp": END, "end_timestamp": START}


def run(*command, **options):
    """Run a program, which must succeed; return its output."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def apis(fonte, alvo, monkeypatch):
    """The base URLs of both APIs, with an admin, over a Fonte of ten days and an Alvo of one."""
    for side, url in (("FONTE", fonte), ("ALVO", alvo)):
        monkeypatch.setenv(f"{side}_ADMIN_DATABASE_URL", url.render_as_string(hide_password=False))
        monkeypatch.setenv(f"{side}_ADMIN_TOKEN", TOKEN)
    with connector_over(fonte) as fonte_url:
        monkeypatch.setenv("FONTE_API_URL", fonte_url)
        assert etl.main(["2024-05-20"]) == 0
        with alvo_api(alvo) as alvo_url:
            yield {"fonte": fonte_url, "alvo": alvo_url}


@pytest.fixture(scope="module")
def descriptions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("descriptions")
    for side, app in APPS.items():
        (folder / f"{side}.json").write_text(json.dumps(app.openapi()))
    return folder


def test_each_operation_is_called():
    for side, app in APPS.items():
        operations = {each["operationId"] for methods in app.openapi()["paths"].values() for each in methods.values()}
        assert operations == CALLS[side].keys()


def tag(side, operation):
    methods = [each for methods in APPS[side].openapi()["paths"].values() for each in methods.values()]
    return next(each["tags"][0] for each in methods if each["operationId"] == operation)


@pytest.mark.parametrize("side", CALLS)
def test_openapi_python_client_calls_every_operation(apis, descriptions, tmp_path, monkeypatch, side):
    package = f"opc_{side}"
    generate = (Path(sys.executable).with_name("openapi-python-client"), "generate", "--meta", "none")
    run(*generate, "--path", descriptions / f"{side}.json", "--output-path", tmp_path / package)
    monkeypatch.syspath_prepend(tmp_path)
    client, models = importlib.import_module(f"{package}.client"), importlib.import_module(f"{package}.models")
    admin = client.AuthenticatedClient(apis[side], TOKEN)
    stranger = client.AuthenticatedClient(apis[side], "wrong")

    def call(operation, asked, caller=admin):
        module = importlib.import_module(f"{package}.api.{tag(side, operation)}.{operation}")
        answer = module.sync_detailed(client=caller, **asked)
        return answer.status_code, answer.parsed

    for operation, (asked, expected) in CALLS[side].items():
        kinds = {"columns": "DataColumnsItem", "profile": "RandomizeProfile"}
        typed = {
            name: [getattr(models, kinds[name])(each) for each in value]
            if name == "columns"
            else getattr(models, kinds[name])(value)
            if name == "profile"
            else value
            for name, value in asked.items()
        }
        status, parsed = call(operation, typed)
        assert status == 200, operation
        assert expected in (None, len(parsed) if isinstance(parsed, list) else 0), operation
        if tag(side, operation) == "changing":
            status, problem = call(operation, typed, stranger)
            assert (status, problem.detail) == (401, "the admin token is wrong")
    for operation in ("data", "delete_data"):
        status, problem = call(operation, REVERSED)
        assert status == 422
        assert "is not before end_timestamp" in problem.detail
    for each in (admin, stranger):
        each.get_httpx_client().close()


@pytest.mark.parametrize("side", CALLS)
def test_openapi_generators_python_calls_every_operation(apis, descriptions, tmp_path, monkeypatch, side):
    package = f"oag_{side}"
    generated(descriptions / f"{side}.json", "python", tmp_path, "--package-name", package)
    monkeypatch.syspath_prepend(tmp_path)
    client = importlib.import_module(package)

    def caller(operation, token=TOKEN, suffix=""):
        configured = client.ApiClient(client.Configuration(host=apis[side], access_token=token))
        return getattr(getattr(client, f"{tag(side, operation).title()}Api")(configured), operation + suffix)

    with caller("data", suffix="_without_preload_content")(**PERIOD, format="csv") as answer:
        lines = answer.data.decode().splitlines()
    assert len(lines) == {"fonte": 60, "alvo": 48}[side] + 1
    for operation, (asked, expected) in CALLS[side].items():
        answer = caller(operation)(**asked)
        assert expected in (None, len(answer) if isinstance(answer, list) else 0), operation
        if tag(side, operation) == "changing":
            with pytest.raises(client.ApiException) as refused:
                caller(operation, "wrong")(**asked)
            assert refused.value.status == 401
    for operation in ("data", "delete_data"):
        with pytest.raises(client.ApiException) as refused:
            caller(operation)(**REVERSED)
        assert refused.value.status == 422
        assert "is not before end_timestamp" in json.loads(refused.value.body)["detail"]


def generated(description, language, folder, *options):
    jar = Path(openapi_generator_cli.__file__).with_name("openapi-generator.jar")
    run("java", "-jar", jar, "generate", "-g", language, "-i", description, "-o", folder, *options)


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))


TYPESCRIPT_FETCH = """
const {Configuration, ReadingApi, ChangingApi, ResponseError} = require("./js/index.js");
const [basePath, token, calls, reversed] = JSON.parse(process.argv[2]);
const moments = (asked) => Object.fromEntries(Object.entries(asked).map(([name, value]) => [
  name, name.endsWith("Timestamp") ? new Date(value) : ["columns", "signals"].includes(name) ? new Set(value) : value,
]));
const apis = (accessToken) => {
  const configuration = new Configuration({basePath, accessToken});
  return {reading: new ReadingApi(configuration), changing: new ChangingApi(configuration)};
};
const problem = async (call) => {
  try { await call(); } catch (error) {
    if (!(error instanceof ResponseError)) throw error;
    return [error.response.status, (await error.response.json()).detail];
  }
};
(async () => {
  const found = {};
  for (const [tag, operation, asked] of calls) {
    const answer = await apis(token)[tag][operation](moments(asked));
    found[operation] = [answer.length ?? null];
    if (tag === "changing") found[operation].push(await problem(() => apis("wrong")[tag][operation](moments(asked))));
  }
  found.reversed = await problem(() => apis(token).reading.data(moments(reversed)));
  const raw = await apis(token).reading.dataRaw({format: "csv"});
  found.csv = (await raw.raw.text()).split("\\n")[0];
  console.log(JSON.stringify(found));
})();
"""


def tsc(*arguments, cwd):
    run(Path(os.environ["NODE_PATH"]) / ".bin" / "tsc", "--target", "es2022", *arguments, cwd=cwd)


def in_json(value):
    return value.isoformat() if isinstance(value, datetime) else value


@pytest.mark.parametrize("side", CALLS)
def test_openapi_generators_typescript_calls_every_operation(apis, descriptions, tmp_path, side):
    generated(descriptions / f"{side}.json", "typescript-fetch", tmp_path)
    tsc("--module", "commonjs", "--strict", "--lib", "es2022,dom", "--outDir", "js", "index.ts", cwd=tmp_path)
    (tmp_path / "check.js").write_text(TYPESCRIPT_FETCH)
    calls = [
        (tag(side, name), camel(name), {camel(key): in_json(value) for key, value in asked.items()})
        for name, (asked, _) in CALLS[side].items()
    ]
    asked = [apis[side], TOKEN, calls, {camel(key): in_json(value) for key, value in REVERSED.items()}]
    printed = json.loads(run("node", "check.js", json.dumps(asked), cwd=tmp_path))
    for name, (_, expected) in CALLS[side].items():
        assert printed[camel(name)][0] == expected, name
        if tag(side, name) == "changing":
            assert printed[camel(name)][1] == [401, "the admin token is wrong"]
    assert printed["reversed"][0] == 422
    assert printed["csv"].startswith("timestamp,")


OPENAPI_FETCH = """
import createClient from "openapi-fetch";
import type {paths as Fonte} from "./fonte.js";
import type {paths as Alvo} from "./alvo.js";
const [fonteUrl, alvoUrl, token] = process.argv.slice(2);
const fonte = createClient<Fonte, "application/json">({baseUrl: fonteUrl, headers: {Authorization: `Bearer ${token}`}});
const alvo = createClient<Alvo, "application/json">({baseUrl: alvoUrl, headers: {Authorization: `Bearer ${token}`}});
const query = {start_timestamp: "2024-05-20T00:00:00Z", end_timestamp: "2024-05-20T01:00:00Z"};
const reversed = {start_timestamp: query.end_timestamp, end_timestamp: query.start_timestamp};

const samples = (await fonte.GET("/data", {params: {query: {...query, columns: ["power"]}}})).data!;
const power: number | null | undefined = samples[0].power;
const values = (await alvo.GET("/data", {params: {query: {...query, signals: ["power_mean"]}}})).data!;
const csv = (await alvo.GET("/data", {params: {query: {format: "csv"}}, parseAs: "text"})).data as unknown as string;
const counts: (number | string | undefined)[] = [
  samples.length, typeof power, values.length, csv.split("\\n")[0],
  (await fonte.GET("/columns")).data!.length,
  (await fonte.GET("/period")).data!.rows,
  (await fonte.GET("/health")).data!.status,
  (await fonte.POST("/data/randomize", {params: {query: {...query, step_minutes: 10}}})).data!.rows,
  (await fonte.DELETE("/data", {params: {query}})).data!.rows,
  (await fonte.GET("/data", {params: {query: reversed}})).error!.detail,
  (await alvo.GET("/signals", {params: {query: {name: "power_mean"}}})).data!.length,
  (await alvo.GET("/health")).data!.status,
  (await alvo.DELETE("/data", {params: {query}})).data!.rows,
  (await alvo.DELETE("/signals")).data!.rows,
  (await alvo.DELETE("/data", {headers: {Authorization: "Bearer wrong"}})).error!.detail,
];
console.log(JSON.stringify(counts));
"""


def test_the_types_of_openapi_typescript_fit_the_answers(apis, descriptions, tmp_path):
    modules = Path(os.environ["NODE_PATH"])
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for side in CALLS:
        run(modules / ".bin" / "openapi-typescript", descriptions / f"{side}.json", "-o", tmp_path / f"{side}.ts")
    (tmp_path / "check.ts").write_text(OPENAPI_FETCH)
    # Instead of Node's types.
    (tmp_path / "node.d.ts").write_text("declare const process: {argv: string[]};\n")
    options = ("--module", "nodenext", "--strict", "--lib", "es2022,dom,dom.iterable", "--skipLibCheck")
    tsc(*options, "check.ts", "node.d.ts", cwd=tmp_path)
    printed = json.loads(run("node", "check.js", apis["fonte"], apis["alvo"], TOKEN, cwd=tmp_path))
    reversed_ = "start_timestamp 2024-05-20 01:00:00+00:00 is not before end_timestamp 2024-05-20 00:00:00+00:00"
    fonte = [3, 14400, "ok", 6, 6, reversed_]
    alvo = [1, "ok", 48, 0, "the admin token is wrong"]
    assert printed == [60, "number", 6, "timestamp,signal,value", *fonte, *alvo]


@pytest.mark.parametrize("side", CALLS)
def test_schemathesis_with_its_defaults_finds_no_issue(apis, side):
    command = (Path(sys.executable).with_name("schemathesis"), "run", f"{apis[side]}/openapi.json")
    printed = run(*command, "-H", f"Authorization: Bearer {TOKEN}", cwd=ROOT)
    assert "No issues found" in printed


@pytest.mark.parametrize("path", ["/data", "/health", "/docs"])
@pytest.mark.parametrize("side", CALLS)
def test_curl_wget_and_axios_get_a_head(apis, side, path):
    url = apis[side] + path
    assert "HTTP/1.1 200 OK" in run("curl", "--silent", "--show-error", "--head", url)
    run("wget", "--spider", "--quiet", url)
    axios = f'require("axios").head("{url}").then((answer) => console.log(answer.status))'
    assert run("node", "-e", axios).strip() == "200"


@contextmanager
def served(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page that reaches only this machine; its `wrong` lists errors and other requests."""
    context = chromium.new_context()
    page = context.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on(
        "console", lambda message: page.wrong.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("request", lambda request: page.wrong.append(request.url) if is_elsewhere(request.url) else None)
    context.route(is_elsewhere, lambda route: route.abort())
    yield page
    context.close()


def is_elsewhere(url):
    return url.startswith("http") and not url.startswith("http://127.0.0.1:")


def test_a_page_of_another_origin_reads_only_if_allowed(fonte, page, tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("<!doctype html><title>other</title>")
    read = "(url) => fetch(url).then((answer) => answer.json()).then((rows) => rows.length, () => 'refused')"
    with served(partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as port:
        page.goto(ORIGIN.format(port))
        for allowed, expected in ((port, 1440), (port + 1, "refused")):
            monkeypatch.setenv("FONTE_ALLOWED_ORIGINS", ORIGIN.format(allowed))
            with connector_over(fonte) as base_url:
                assert page.evaluate(read, f"{base_url}/data?end_timestamp=2024-05-21") == expected


def opens_the_docs(page, url, side):
    """Open the docs, check that they show every operation, and execute one."""
    page.goto(url)
    operations = page.locator(".opblock")
    operations.first.wait_for()
    assert operations.count() == len(CALLS[side])
    page.locator(".opblock", has_text="/health").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table", has_text='"status": "ok"').wait_for()
    assert page.title() == {"fonte": "Fonte connector", "alvo": "Alvo"}[side]
    assert page.wrong == []


@pytest.mark.parametrize("side", CALLS)
def test_the_docs_need_no_internet_and_keep_their_policy(apis, page, side):
    opens_the_docs(page, f"{apis[side]}/docs", side)


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; events {{}} user root;
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /a/fonte/ {{ proxy_http_version 1.0; proxy_pass {fonte}/; }}
        location /a/alvo/ {{ proxy_http_version 1.0; proxy_pass {alvo}/; }}
    }}
}}
"""


@pytest.fixture
def behind_nginx(apis, tmp_path):
    """The base URLs of both APIs behind a prefix of nginx, which uses HTTP/1.0, its old default."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, port=port, **apis))
    server = subprocess.Popen([shutil.which("nginx"), "-e", "stderr", "-c", tmp_path / "nginx.conf"])
    urls = {side: f"http://127.0.0.1:{port}/a/{side}" for side in apis}
    wait_until(lambda: answers(urls["fonte"]))
    yield urls
    server.terminate()
    server.wait()


def answers(url):
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_behind_nginx_downloads_are_whole_in_every_format(apis, behind_nginx):
    for side, form in [(side, form) for side in apis for form in ("json", "csv", "arrow")][:-1]:
        answers = [httpx.get(f"{urls[side]}/data?format={form}") for urls in (apis, behind_nginx)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].content == answers[1].content
    location = httpx.get(f"{behind_nginx['fonte']}/").headers["location"]
    assert httpx.URL(f"{behind_nginx['fonte']}/").join(location) == f"{behind_nginx['fonte']}/docs"


def test_behind_nginx_etl_loads_a_day(behind_nginx, alvo):
    command = [sys.executable, "etl.py", "2024-05-21"]
    assert "1,152 values written" in run(*command, cwd=SCRIPTS, env=external(behind_nginx["fonte"], alvo))


@pytest.mark.parametrize("side", CALLS)
def test_behind_nginx_the_docs_call_the_api(behind_nginx, page, side):
    opens_the_docs(page, f"{behind_nginx[side]}/docs", side)


def test_behind_nginx_the_page_shows_the_day(behind_nginx, page):
    page.goto(f"{behind_nginx['alvo']}/")
    page.get_by_text("(kW)").first.wait_for()
    assert page.wrong == []
