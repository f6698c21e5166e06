// The dashboard: it loads the state from the API, then applies the changes of the event stream.

import { ago, count, ms, rate, signed, stamp, time } from "./format.js";
import { SymbolTable } from "./table.js";

const at = (id) => document.getElementById(id);
const table = new SymbolTable({ table: at("table"), head: at("head"), room: at("room"), shown: at("shown") });
const alerts = new Map();
const ALERTS_SHOWN = 100;
const QUIET_S = 15;
let pipeline = null;
let models = [];
let openAlerts = 0;
let newest = null;
let loaded = false;
let loading = false;
let again = false;
let arrangeAt = 0;

async function get(path) {
  const response = await fetch(path);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? `${path} answered ${response.status}`);
  return answer;
}

async function* pages(path) {
  let next = null;
  do {
    const page = await get(`${path}${path.includes("?") ? "&" : "?"}limit=1000${next === null ? "" : `&next=${encodeURIComponent(next)}`}`);
    yield page.items;
    next = page.next;
  } while (next !== null);
}

/** Loads everything: at the start, after a lost stream, and when new symbols appear. */
async function load() {
  if (loading) {
    again = true;
    return;
  }
  loading = true;
  again = false;
  try {
    const known = new Set();
    for await (const items of pages("/api/symbols")) {
      for (const { prediction, ...row } of items) {
        known.add(row.symbol);
        if (row.session) table.sessions[row.exchange] = row.session;
        const held = table.rows.get(row.symbol);
        const older = held?.second != null && row.second != null && held.second > row.second && held.source === row.source;
        const fields = older ? { name: row.name, open_alerts: row.open_alerts } : row;
        table.merge(row.symbol, { ...fields, predicted_return: prediction?.predicted_return ?? null, p_up: prediction?.p_up ?? null, horizon_s: prediction?.horizon_s ?? null });
      }
    }
    for (const symbol of table.rows.keys()) if (!known.has(symbol)) table.rows.delete(symbol);
    const open = await get("/api/alerts?state=open&limit=1000");
    alerts.clear();
    for (const alert of open.items) alerts.set(alert.id, alert);
    openAlerts = alerts.size;
    models = (await get("/api/models")).items;
    loaded = true;
  } finally {
    loading = false;
  }
  table.arrange();
  drawAlerts();
  drawHeader();
  if (again) {
    again = false;
    setTimeout(tryLoad, 5_000);
  }
}

const tryLoad = () => load().catch((error) => showStatus("waiting", `the API does not answer: ${error.message}`));

function showStatus(state, text) {
  at("status").dataset.state = state;
  at("status").textContent = text;
}

function byRow(columns, use) {
  const names = Object.keys(columns);
  for (let i = 0; i < columns.symbol.length; i++) use(columns.symbol[i], Object.fromEntries(names.map((name) => [name, columns[name][i]])));
}

function drawHeader() {
  const rates = pipeline?.rates_per_s ?? {};
  at("second").textContent = time(newest);
  at("second").title = stamp(newest);
  at("symbols").textContent = loaded ? count(table.rows.size) : "–";
  at("ticks").textContent = pipeline ? rate(rates.ticks_accepted ?? 0) : "–";
  at("predictions").textContent = pipeline ? rate(rates.predictions ?? 0) : "–";
  at("alerts").textContent = loaded ? count(openAlerts) : "–";
  const empty = loaded && table.rows.size === 0;
  at("empty").hidden = !empty;
  at("table").hidden = empty;
  if (empty) drawEmpty();
}

function drawEmpty() {
  const tail = pipeline?.views?.tail;
  const strong = document.createElement("strong");
  const words = document.createElement("span");
  if (tail && tail.state === "stopped" && pipeline.ready === false) {
    strong.textContent = "The worker is not ready";
    words.textContent = `Its status: ${pipeline.status}. This page updates when the worker is ready.`;
  } else if (tail && tail.state !== "reading") {
    strong.textContent = "Waiting for the broker";
    words.textContent = `The views' reader is ${tail.state}${tail.reason ? `: ${tail.reason}` : ""}. This page updates when the broker answers.`;
  } else {
    const sources = pipeline?.sources ?? [];
    const failed = sources.find((source) => source.state === "failed");
    const unwatched = sources.find((source) => source.state === "idle" && source.symbols === 0);
    strong.textContent = failed ? `Source ${failed.source} has failed` : "Waiting for the first closed second";
    if (failed) {
      words.textContent = `${failed.reason}. The worker retries it.`;
    } else if (sources.length) {
      words.append("The topics hold no symbol yet. ", sources.map(({ source, state, reason }) => `Source ${source} is ${state}${reason ? `: ${reason}` : ""}.`).join(" "));
      if (unwatched) words.append(" Add symbols: ", code(`stockstream watch add ${unwatched.source === "simulated" ? "ABC" : "AAPL"} --source ${unwatched.source}`));
    } else {
      words.append("The topics are read and hold no symbol yet, and this worker runs no source. A symbol appears here when its first second has closed. Start the worker with ",
        code("STOCKSTREAM_SOURCE=simulated"), " for a simulated market, or with ", code("STOCKSTREAM_SOURCE=yahoo"), " and ", code("stockstream watch add AAPL MSFT --source yahoo"),
        " for real symbols; run ", code("stockstream replay FILE"), "; or write ticks to the topic ", code("ticks.raw"), ".");
    }
  }
  at("empty").replaceChildren(strong, words);
}

function code(text) {
  const element = document.createElement("code");
  element.textContent = text;
  return element;
}

function drawAlerts() {
  const newestFirst = [...alerts.values()].sort((a, b) => b.opened_at - a.opened_at || (a.id < b.id ? 1 : -1));
  at("no-alerts").hidden = !loaded || newestFirst.length > 0;
  const lines = newestFirst.slice(0, ALERTS_SHOWN).map((alert) => {
    const line = document.createElement("li");
    const what = document.createElement("div");
    what.className = "what";
    const [symbol, rule, when] = ["b", "span", "span"].map((kind) => document.createElement(kind));
    symbol.textContent = alert.symbol;
    rule.textContent = alert.rule.replaceAll("_", " ");
    rule.className = alert.severity;
    when.textContent = time(alert.opened_at / 1000);
    when.title = `opened ${stamp(alert.opened_at / 1000)}`;
    when.className = "quiet";
    const words = document.createElement("p");
    words.textContent = alert.message;
    what.append(symbol, rule, when);
    line.append(what, words);
    return line;
  });
  if (newestFirst.length > ALERTS_SHOWN) {
    const more = document.createElement("li");
    more.className = "quiet";
    more.textContent = `and ${count(newestFirst.length - ALERTS_SHOWN)} more`;
    lines.push(more);
  }
  at("alert-list").replaceChildren(...lines);
}

function figures(caption, heads, rows) {
  const element = document.createElement("table");
  element.createCaption().textContent = caption;
  if (heads.length) {
    const line = element.createTHead().insertRow();
    for (const head of ["", ...heads]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = head;
      line.append(cell);
    }
  }
  const body = element.createTBody();
  for (const [name, ...values] of rows) {
    const line = body.insertRow();
    const cell = document.createElement("th");
    cell.scope = "row";
    cell.textContent = name;
    line.append(cell);
    for (const value of values) line.insertCell().textContent = value;
  }
  return element;
}

function drawPipeline() {
  const note = pipeline.models_note ?? "";
  if (loaded && at("models-note").textContent !== note) {           // the models have changed
    get("/api/models").then(({ items }) => { models = items; drawPipeline(); }, () => {});
  }
  at("models-note").textContent = note;
  at("models-note").hidden = !note;
  at("sources-note").textContent = pipeline.sources_note ?? "";
  at("sources-note").hidden = !pipeline.sources_note;
  const parts = [];
  const hops = Object.entries(pipeline.latency_ms);
  if (hops.length) parts.push(figures("Latency of the last 60 s, ms", ["p50", "p99"], hops.map(([hop, { p50, p99 }]) => [hop, ms(p50), ms(p99)])));
  const lag = new Map();
  for (const { topic, lag: records } of pipeline.lag) lag.set(topic, (lag.get(topic) ?? 0) + records);
  if (lag.size) parts.push(figures("Records not read yet", [], [...lag].map(([topic, records]) => [topic, count(records)])));
  const rates = Object.entries(pipeline.rates_per_s);
  if (rates.length) parts.push(figures("Per second, mean of the last 60 s", [], rates.map(([name, value]) => [name.replaceAll("_", " ").replace("rows.", "rows to "), rate(value)])));
  const rejected = Object.entries(pipeline.rejected);
  if (rejected.length) parts.push(figures("Ticks rejected since the start", [], rejected.map(([reason, n]) => [reason.replaceAll("_", " "), count(n)])));
  if (pipeline.archive.length) parts.push(figures("Archived through raw offset", [], pipeline.archive.map(({ partition, offset }) => [`partition ${partition}`, offset < 0 ? "nothing yet" : count(offset)])));
  if (models.length) parts.push(figures("Models", [], models.map((model) => [`${model.name} ${model.version}`, model.state ?? model.role])));
  if (pipeline.sources?.length) {
    parts.push(figures("Sources", [], pipeline.sources.map(({ source, state, reason, symbols }) => [source, `${state}, ${count(symbols)} ${symbols === 1 ? "symbol" : "symbols"}${reason ? `: ${reason}` : ""}`])));
  }
  if (pipeline.outcomes.length) {
    parts.push(figures("Predictions evaluated since the start", ["n", "sign right", "mean error"], pipeline.outcomes.map((o) => [
      `${o.model} ${o.version}, ${o.horizon_s} s`, count(o.outcomes), o.moved ? `${((100 * o.hits) / o.moved).toFixed(1)} %` : "no moves yet", signed(o.mean_absolute_error, 3).replace("+", ""),
    ])));
  }
  if (!parts.length) {
    const words = document.createElement("p");
    words.className = "quiet";
    words.textContent = "This worker has processed nothing yet.";
    parts.push(words);
  }
  at("pipeline").replaceChildren(...parts);
}

function showState() {
  const tail = pipeline?.views?.tail;
  if (tail && tail.state === "stopped" && pipeline.ready === false) showStatus("waiting", pipeline.status);
  else if (tail && tail.state !== "reading") showStatus("waiting", `the broker's topics: ${tail.state}`);
  else if (newest === null) showStatus("waiting", "connected, no market data yet");
  else {
    const age = Date.now() / 1000 - newest;
    if (age > QUIET_S) showStatus("waiting", `connected, last second ${ago(age)} ago`);
    else showStatus("live", "live");
  }
}

const stream = new EventSource("/events");
stream.addEventListener("open", () => tryLoad());
stream.addEventListener("error", () => showStatus("lost", "no connection to the worker, reconnecting"));
stream.addEventListener("pipeline", (event) => {
  pipeline = JSON.parse(event.data);
  newest = pipeline.views.newest_second;
  table.sessions = pipeline.views.sessions ?? {};
  showState();
  drawPipeline();
  drawHeader();
});
stream.addEventListener("tick-summary", (event) => {
  const { columns } = JSON.parse(event.data);
  let unknown = false;
  byRow(columns, (symbol, row) => {
    unknown = table.merge(symbol, row) || unknown;
    if (newest === null || row.second > newest) newest = row.second;
  });
  if (unknown && loaded) {
    again = true;
    setTimeout(() => again && tryLoad(), 2_000);        // for their names
  }
  refresh();
});
stream.addEventListener("predictions", (event) => {
  byRow(JSON.parse(event.data).columns, (symbol, { predicted_return, p_up, horizon_s }) => table.merge(symbol, { predicted_return, p_up, horizon_s }));
  refresh();
});
stream.addEventListener("alerts", (event) => {
  const { items, open_alerts } = JSON.parse(event.data);
  for (const alert of items) {
    if (alert.state === "closed") alerts.delete(alert.id);
    else alerts.set(alert.id, alert);
  }
  openAlerts = open_alerts;
  const bySymbol = new Map();
  for (const { symbol } of alerts.values()) bySymbol.set(symbol, (bySymbol.get(symbol) ?? 0) + 1);
  for (const { symbol } of items) if (table.rows.has(symbol)) table.merge(symbol, { open_alerts: bySymbol.get(symbol) ?? 0 });
  drawAlerts();
  drawHeader();
  table.draw();
});
setInterval(() => table.draw(), 5_000);         // ages grow without events
at("filter").addEventListener("input", (event) => table.find(event.target.value));

/** New figures: the visible rows at once; the order at most once a second, and only where it can have changed. */
function refresh() {
  const now = performance.now();
  if (table.order.length !== table.rows.size || table.key !== "symbol") {
    if (now >= arrangeAt) {
      arrangeAt = now + 1_000;
      table.arrange();
      drawHeader();
      return;
    }
  }
  at("second").textContent = time(newest);
  table.draw();
}
