// The page of an address space. Rows are drawn when they are looked at: there may be hundreds of thousands.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const ROWS = 200;
const state = { root: 0, columns: null, tables: null, chosen: null, page: 0, words: [], trail: [], texts: null };

const root = () => data.roots[state.root];
const nameOf = (index) => index ? root().names[index - 1] : "";

function region(i) {
  const { start, pages, phys, info, area, repeats, symbol } = state.columns;
  const word = info.at(i);
  return {
    index: i, start: start.at(i), pages: pages.at(i), phys: phys.at(i), kind: data.kinds[word & 15], level: word >> 4 & 15,
    rights: { w: word >> 8 & 1, u: word >> 9 & 1, x: word >> 10 & 1 }, area: nameOf(area.at(i)), repeats: repeats.at(i),
    symbol: nameOf(symbol.at(i)), flags: state.columns.flags.big(i),
  };
}

function cells(one) {
  const ends = [hexPage(one.start), hexPage(one.start + one.pages - 1, 0xfff), sizeOfPages(one.pages)];
  const at = one.phys ? hexPage(one.phys - 1) : "scattered", names = [one.area, one.symbol];
  if (one.kind === "REPEAT") return [...ends, `${LEVELS[one.level]} table at ${at} again, ${one.repeats} times`, ...names];
  if (one.kind === "UNREADABLE") return [...ends, `its ${LEVELS[one.level]} table at ${at} is not in memory`, ...names];
  if (one.kind === "MALFORMED") return [...ends, `${LEVELS[one.level]} entry with reserved bits set, holding ${at}`, ...names];
  const entry = state.tables.entry(one.flags | 1n, one.level);
  return [...ends, data.pages[one.level], spell(one.rights), at, flagNames(entry), ...names];
}

function findingsAt(one) {
  const last = one.start + one.pages - 1;
  return data.findings.filter((found) => found.start && state.root === 0 && !found.excepted &&
    parseInt(found.start.slice(0, -3), 16) <= last && parseInt(found.end.slice(0, -3), 16) >= one.start);
}

function row(i) {
  const one = region(i), [start, last, size, ...rest] = cells(one);
  const marks = findingsAt(one).map((found) => found.rule);
  const tone = one.kind === "MAPPED" ? shade(one.rights) : one.kind === "REPEAT" ? "" : "bad";
  const button = make("button", { class: "address", onclick: () => showWalk(BigInt(start)) }, start);
  const sentence = rest.length < 6;
  const others = rest.map((text, at) => make("td", { class: !sentence && at === 0 ? "page" : null, colspan: sentence && at === 0 ? 4 : null }, text));
  if (marks.length) others[sentence ? 0 : 1].append(make("span", { class: "mark" }, " ⚠ " + [...new Set(marks)].join(", ")));
  return make("tr", { class: tone, id: "row-" + i }, make("td", {}, button), make("td", {}, last), make("td", { class: "n" }, size), ...others);
}

// ---- regions

function matching() {
  const count = state.columns.start.rows;
  if (!state.words.length) return null;
  state.texts = state.texts || Array.from({ length: count }, (_, i) => cells(region(i)).join(" ").toLowerCase());
  const found = [];
  for (let i = 0; i < count; i++) if (state.words.every((word) => state.texts[i].includes(word))) found.push(i);
  return found;
}

function drawRegions() {
  const { chosen } = state, all = state.columns.start.rows;
  const count = chosen ? chosen.length : all;
  const pages = Math.max(1, Math.ceil(count / ROWS));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const first = state.page * ROWS, body = byId("regions").tBodies[0];
  const rows = [];
  for (let i = first; i < Math.min(first + ROWS, count); i++) {
    const index = chosen ? chosen[i] : i;
    if (root().cut && index === root().cut_at && !chosen) {
      rows.push(make("tr", { class: "bad" }, make("td", { colspan: 9 }, `${root().cut} regions between are not on this page`)));
    }
    rows.push(row(index));
  }
  body.replaceChildren(...rows);
  const where = count ? `${(first + 1).toLocaleString("en")} to ${Math.min(first + ROWS, count).toLocaleString("en")} of ` : "";
  byId("count").textContent = `${where}${count.toLocaleString("en")} regions` + (chosen ? ` with these words, of ${all.toLocaleString("en")}` : "") +
    (root().cut ? `; ${root().cut.toLocaleString("en")} more are not on this page` : "");
  for (const pager of document.querySelectorAll(".pager")) drawPager(pager, pages);
}

function drawPager(pager, pages) {
  pager.hidden = pages === 1;
  const go = (page, text) => make("button", {
    disabled: page < 0 || page >= pages || page === state.page ? "" : null,
    onclick: () => { state.page = page; drawRegions(); },
  }, text);
  pager.replaceChildren(go(0, "first"), go(state.page - 1, "previous"),
    make("span", {}, ` page ${state.page + 1} of ${pages} `), go(state.page + 1, "next"), go(pages - 1, "last"));
}

// ---- search

function canonical(va) {
  const top = 12n + 9n * BigInt(root().levels) - 1n;
  const high = va >> top;
  return high === 0n || high === (1n << 64n - top) - 1n;
}

function search(text) {
  const wanted = text.trim().toLowerCase().replaceAll("_", "").replaceAll("`", "");
  const answer = byId("answer");
  answer.textContent = "";
  if (/^(0x[0-9a-f]{1,16}|[0-9a-f]{9,16})$/.test(wanted)) {
    const va = BigInt(wanted.startsWith("0x") ? wanted : "0x" + wanted);
    state.words = [];
    state.chosen = null;
    const at = find(Number(va >> 12n));
    state.page = Math.max(0, Math.floor(at.near / ROWS));
    drawRegions();
    answer.textContent = at.index === null ? `${hex(va)} is in no region` : `${hex(va)} is in ${cells(region(at.index)).filter(Boolean).join(" ")}`;
    if (at.index !== null) byId("row-" + at.index)?.classList.add("here");
    showWalk(va, false);
    return;
  }
  state.words = text.toLowerCase().split(/\s+/).filter(Boolean);
  state.chosen = matching();
  state.page = 0;
  drawRegions();
  if (state.chosen && !state.chosen.length) answer.textContent = "no region has all of these words";
}

// The region that holds a page, by halving; `near` is the one at or below it.
function find(page) {
  let low = 0, high = state.columns.start.rows;
  while (low < high) {
    const middle = low + high >> 1;
    if (state.columns.start.at(middle) <= page) low = middle + 1; else high = middle;
  }
  const near = low - 1;
  const inside = near >= 0 && page < state.columns.start.at(near) + state.columns.pages.at(near);
  return { index: inside ? near : null, near };
}

// ---- one walk

function showWalk(va, move = true) {
  const place = byId("walk"), levels = root().levels;
  byId("h-walk").textContent = "Walk to " + hex(va);
  if (!canonical(va)) {
    place.replaceChildren(make("p", { class: "bad" }, `Not canonical with ${levels} levels: bits 63 to ${11 + 9 * levels} differ. The CPU refuses it before it reads a table.`));
  } else {
    const walk = state.tables.walk(root().root, levels, va);
    place.replaceChildren(splitAddress(va, levels), make("ol", { class: "steps" }, ...walk.steps.map(stepElement)),
      make("p", { class: "end " + (walk.end === "mapped" ? "" : "bad") }, ending(walk)));
  }
  if (move) byId("h-walk").focus();
}

// Why a page can be written that an entry on the way makes read-only.
function overruled(steps) {
  return steps.at(-1).rights.w && steps.some((step) => !(step.raw & 2n)) ? ": CR0.WP=0, so the supervisor writes whatever RW says" : "";
}

function ending(walk) {
  switch (walk.end) {
    case "mapped": return `physical ${hex(walk.phys)}, ${data.pages[walk.level]} page, effective ${spell(walk.rights)}` + overruled(walk.steps);
    case "empty": return "not mapped: the last entry is not present";
    case "malformed": return "malformed: the last entry has reserved bits set, and the CPU faults";
    default: return data.tables.left_out
      ? `the ${LEVELS[walk.level]} table at ${hex(walk.table)} is not on this page; fivefold walk reads it`
      : `the ${LEVELS[walk.level]} table at ${hex(walk.table)} is not in memory`;
  }
}

// ---- tables, level by level

function drawGrid() {
  const levels = root().levels, trail = state.trail, level = levels - trail.length;
  let table = BigInt(root().root), va = 0n, rights = ALL_RIGHTS;
  const crumbs = [make("button", { onclick: () => { state.trail = []; drawGrid(); } }, `${LEVELS[levels]} ${hex(table)}`)];
  trail.forEach((index, depth) => {
    const entry = state.tables.entry(state.tables.read(table)[index], levels - depth);
    va |= BigInt(index) << BigInt(3 + 9 * (levels - depth));
    rights = through(rights, entry);
    table = entry.target;
    crumbs.push(make("span", { "aria-hidden": "true" }, " › "), make("button", {
      onclick: () => { state.trail = trail.slice(0, depth + 1); drawGrid(); },
    }, `entry ${index}, ${LEVELS[levels - depth - 1]} ${hex(table)}`));
  });
  byId("crumbs").replaceChildren(...crumbs, levels === 4 ? make("small", {}, " with four levels the PML5 is folded: the PML4 is the root") : "");
  const entries = state.tables.read(table), grid = byId("grid");
  if (!entries) {
    grid.replaceChildren(make("p", { class: "bad" }, data.tables.left_out ? "this table is not on this page" : "this table is not in memory"));
    return;
  }
  const squares = entries.map((raw, index) => square(state.tables.entry(raw, level), index, va, rights));
  const first = Math.max(entries.findIndex((raw) => raw !== 0n), 0);
  squares[first].tabIndex = 0;
  grid.replaceChildren(...squares);
  byId("square").textContent = "";
}

function square(entry, index, va, above) {
  let at = va | BigInt(index) << BigInt(3 + 9 * entry.level);
  const top = 12n + 9n * BigInt(root().levels);
  if (at >> top - 1n & 1n) at |= (1n << 64n) - (1n << top);
  const rights = through(above, entry);
  const tone = !entry.present ? "empty" : entry.reserved ? "bad" : entry.leaf ? shade(rights) : "table";
  const what = !entry.present ? flagNames(entry) : `${entry.leaf ? "page" : "table"} at ${hex(entry.target)}, ${spell(rights)}`;
  const text = `entry ${index}, from ${hex(at)}: ${what}`;
  const node = make("button", {
    class: `square ${tone}`, "aria-label": text, tabindex: -1,
    onclick: () => {
      if (!entry.present || entry.leaf || entry.reserved) { showWalk(at); return; }
      state.trail = [...state.trail, index];
      drawGrid();
      byId("grid").querySelector("[tabindex='0']")?.focus();
    },
  });
  const tell = () => { byId("square").textContent = text; };
  node.addEventListener("focus", tell);
  node.addEventListener("pointerenter", tell);
  return node;
}

byId("grid").addEventListener("keydown", (event) => {
  const squares = [...byId("grid").querySelectorAll(".square")], here = squares.indexOf(document.activeElement);
  const across = getComputedStyle(byId("grid")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -here, End: 511 - here }[event.key];
  if (step === undefined || here < 0 || !squares[here + step]) return;
  event.preventDefault();
  squares[here].tabIndex = -1;
  squares[here + step].tabIndex = 0;
  squares[here + step].focus();
});

// ---- areas, findings, roots

function drawAreas() {
  const bar = (area) => area.size ? make("span", { class: "bars", "aria-hidden": "true" },
    make("span", { class: "bar", style: `width:${area.mapped_bits * 0.14}em` }),
    make("span", { class: "bar free", style: `width:${(area.size_bits - area.mapped_bits) * 0.14}em` })) : "";
  const rows = root().areas.map((area) => make("tr", {},
    make("td", {}, area.start ? make("button", {
      onclick: () => { byId("q").value = area.name; search(area.name); byId("h-regions").scrollIntoView(); },
    }, area.name) : area.name),
    make("td", { class: area.size ? "n of" : "n" }, area.size || ""), make("td", { class: "n", title: `${area.mapped_bytes} bytes` }, area.mapped),
    make("td", { class: "wide" }, bar(area)), make("td", { class: area.start ? "from" : "" }, area.start || "")));
  byId("areas").tBodies[0].replaceChildren(...rows);
}

// Rights in a sentence stay on one line: a browser would break them behind a dash.
const unbroken = (text) => text.split(/(\br[w-][x-][u-]?(?=[ ,.;:)]|$))/).map((part, i) => i % 2 ? make("span", { class: "rights" }, part) : part);

function drawFindings() {
  const shown = state.root === 0 ? data.findings : [];
  byId("wrong").replaceChildren(...root().wrong.map((text) => make("li", { class: "bad" }, text)));
  byId("no-findings").textContent = state.root !== 0 ? "The audit looked at the first root alone."
    : data.not_audited ? `No audit: ${data.not_audited}.` : data.more_findings ? `${data.more_findings} more findings are not on this page.`
    : shown.length ? "" : "None.";
  byId("findings").replaceChildren(...shown.map((found) => make("li", { class: found.severity },
    make("strong", {}, found.rule), " ",
    found.start ? make("button", { class: "address", onclick: () => showWalk(BigInt(found.start)) }, found.start) : "registers",
    found.area ? ` ${found.area}: ` : ": ", ...unbroken(found.message),
    found.excepted ? make("small", {}, ` (excepted: ${found.excepted})`) : "")));
}

async function showRoot(index) {
  state.root = index;
  state.columns = await unpack("regions-" + index, root().columns);
  Object.assign(state, { texts: null, chosen: null, words: [], page: 0, trail: [] });
  drawAreas();
  drawFindings();
  drawGrid();
  drawRegions();
}

async function start() {
  const [frames, entries] = await Promise.all([unpack("frames", data.tables.frames), unpack("entries", data.tables.entries)]);
  state.tables = new PageTables(data, frames, entries);
  byId("root").replaceChildren(...data.roots.map((one, i) => make("option", { value: i }, `${one.root} ${one.label}`)));
  byId("root-choice").hidden = data.roots.length < 2;
  byId("root").addEventListener("change", (event) => showRoot(Number(event.target.value)));
  let waiting;
  byId("q").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => search(byId("q").value), 150); });
  byId("search").addEventListener("submit", (event) => { event.preventDefault(); search(byId("q").value); });
  for (const box of document.querySelectorAll(".choices input")) {
    const show = () => { byId(box.value).hidden = !box.checked; };
    box.addEventListener("change", show);
    show();
  }
  await showRoot(0);
  document.body.dataset.ready = "yes";
}

start().catch((error) => { byId("answer").textContent = `This page could not be drawn: ${error}`; });
