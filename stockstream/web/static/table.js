// A table of any length of which only the visible rows exist.

import { ago, count, direction, price, share, signed, size, stamp, time } from "./format.js";

const ROW = 34;
const SPARE = 4;
const STALE_S = 60;
const CLOSED = ["pre", "post", "closed", "holiday"];

export class SymbolTable {
  constructor({ table, head, room, shown }) {
    Object.assign(this, { table, head, room, shown });
    this.rows = new Map();
    this.order = [];
    this.key = "symbol";
    this.down = false;
    this.search = "";
    this.sessions = {};         // by exchange: its state, as far as it is known
    this.pool = [];
    this.pending = false;
    table.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(table);
    head.addEventListener("click", (event) => this.sortBy(event.target.dataset.key));
  }

  /** Updates fields of a symbol and adds a row for a new one. Returns whether the row is new. */
  merge(symbol, fields) {
    const row = this.rows.get(symbol);
    if (row) {
      Object.assign(row, fields);
      return false;
    }
    this.rows.set(symbol, { symbol, name: null, exchange: null, price: null, return_60s: null, volume_5m: null, second: null, predicted_return: null, p_up: null, horizon_s: null, open_alerts: 0, ...fields });
    return true;
  }

  sortBy(key) {
    if (!key) return;
    this.down = key === this.key ? !this.down : key !== "symbol";
    this.key = key;
    for (const button of this.head.children) {
      if (button.dataset.key === key) button.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else button.removeAttribute("aria-sort");
    }
    this.arrange();
  }

  find(text) {
    this.search = text.trim().toLowerCase();
    this.table.scrollTop = 0;
    this.arrange();
  }

  /** Which rows are shown, and in which order; rows without a figure come last. */
  arrange() {
    const { key, search, down } = this;
    const rows = [...this.rows.values()].filter((row) => !search || row.symbol.toLowerCase().includes(search) || (row.name ?? "").toLowerCase().includes(search));
    const byName = (a, b) => (a.symbol < b.symbol ? -1 : a.symbol > b.symbol ? 1 : 0);
    const sign = down ? -1 : 1;
    rows.sort(key === "symbol" ? (a, b) => sign * byName(a, b) : (a, b) => (a[key] == null) - (b[key] == null) || sign * ((a[key] ?? 0) - (b[key] ?? 0)) || byName(a, b));
    this.order = rows;
    this.room.style.height = `${rows.length * ROW}px`;
    this.shown.textContent = rows.length === this.rows.size ? `${count(rows.length)} symbols` : `${count(rows.length)} of ${count(this.rows.size)} symbols`;
    this.table.setAttribute("aria-rowcount", String(rows.length + 1));
    this.draw();
  }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.paint();
    });
  }

  paint() {
    const first = Math.max(0, Math.floor(this.table.scrollTop / ROW) - SPARE);
    const last = Math.min(this.order.length, Math.ceil((this.table.scrollTop + this.table.clientHeight) / ROW) + SPARE);
    while (this.pool.length < last - first) this.pool.push(this.create());
    this.pool.forEach((line, i) => {
      const row = this.order[first + i];
      line.element.hidden = first + i >= last;
      if (!line.element.hidden) this.fill(line, row, first + i);
    });
  }

  create() {
    const element = document.createElement("div");
    element.className = "row";
    element.setAttribute("role", "row");
    const cells = Array.from({ length: 7 }, (_, i) => {
      const cell = document.createElement("div");
      cell.setAttribute("role", "cell");
      if (i) cell.className = "number";
      element.append(cell);
      return cell;
    });
    const link = document.createElement("a");
    const name = document.createElement("span");
    const bell = document.createElement("span");
    name.className = "name";
    bell.className = "bell";
    cells[0].append(link, bell, name);
    this.room.append(element);
    return { element, cells, link, name, bell, shown: [] };
  }

  fill(line, row, place) {
    const { element, cells, link, name, bell, shown } = line;
    const put = (i, target, text, kind) => {
      if (shown[i] !== text) target.textContent = shown[i] = text;
      if (kind !== undefined && target.className !== kind) target.className = kind;
    };
    element.style.transform = `translateY(${place * ROW}px)`;
    element.setAttribute("aria-rowindex", String(place + 2));
    if (shown[0] !== row.symbol) link.href = `/api/symbols/${encodeURIComponent(row.symbol)}`;
    put(0, link, row.symbol);
    put(7, name, row.name && row.name !== row.symbol ? row.name : "");
    put(8, bell, row.open_alerts ? `\u25cf ${row.open_alerts === 1 ? "alert" : `${row.open_alerts} alerts`}` : "");
    put(1, cells[1], price(row.price));
    put(2, cells[2], signed(row.return_60s), `number ${direction(row.return_60s)}`);
    put(3, cells[3], size(row.volume_5m));
    put(4, cells[4], row.predicted_return == null ? "–" : `${signed(row.predicted_return, 3)} in ${row.horizon_s} s`, `number ${direction(row.predicted_return)}`);
    put(5, cells[5], share(row.p_up));
    const age = row.second == null ? 0 : Date.now() / 1000 - row.second - 1;
    const session = this.sessions[row.exchange];
    const closed = CLOSED.includes(session);
    const state = closed ? { pre: "pre-market", post: "after hours" }[session] ?? session : "stale";
    const old = age > STALE_S + (row.delay_s ?? 0);
    put(6, cells[6], old ? `${state}, ${ago(Math.floor(age))}` : time(row.second), old ? `number ${closed ? "quiet" : "stale"}` : "number");
    cells[6].title = stamp(row.second);
  }
}
