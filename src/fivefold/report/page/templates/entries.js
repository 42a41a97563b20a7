// Entries of page tables, decoded by the table of fields that came with the page, and walks through the tables on it.

const LEVELS = { 1: "PT", 2: "PD", 3: "PDPT", 4: "PML4", 5: "PML5" };

class PageTables {
  constructor(data, frames, entries) {
    this.data = data;
    this.words = entries.entry;
    this.places = new Map();
    for (let i = 0; i < frames.frame.rows; i++) this.places.set(frames.frame.at(i), i);
    this.cache = new Map();
    this.mask = BigInt(data.cpu.frame_mask);
  }

  // The 512 entries of the table at an address, or null where it is not on the page.
  read(address) {
    const place = this.places.get(Number(address >> 12n));
    if (place === undefined) return null;
    if (!this.cache.has(place)) {
      const [low, high] = this.words.sums(place * 512, 512);
      this.cache.set(place, Array.from(low, (half, i) => BigInt(high[i]) << 32n | BigInt(half)));
    }
    return this.cache.get(place);
  }

  entry(raw, level) {
    const present = (raw & 1n) !== 0n;
    const leaf = level === 1 || (level <= 3 && (raw & 0x80n) !== 0n);
    const kind = LEVELS[level] + (level <= 3 && (leaf || level === 1) ? " leaf" : "");
    const reserved = present ? raw & BigInt(this.data.cpu.reserved[LEVELS[level] + (level > 1 && raw & 0x80n ? " leaf" : "")]) : 0n;
    const within = leaf && level > 1 ? (1n << BigInt(3 + 9 * level)) - 1n : 0n;
    const target = raw & this.mask & ~within;
    return { raw, level, present, leaf, reserved, target, fields: this.data.fields[kind] || this.data.fields[LEVELS[level]] };
  }

  // Every entry on the way to an address; `end` says what came of it.
  walk(root, levels, va) {
    const steps = [];
    let table = BigInt(root);
    let rights = ALL_RIGHTS;
    for (let level = levels; level > 0; level--) {
      const entries = this.read(table);
      if (!entries) return { steps, end: "missing", table, level };
      const index = Number(va >> BigInt(3 + 9 * level) & 511n);
      const entry = this.entry(entries[index], level);
      if (entry.present) rights = through(rights, entry);
      steps.push({ ...entry, index, at: table + BigInt(index * 8), rights: this.granted(rights) });
      if (!entry.present) return { steps, end: "empty" };
      if (entry.reserved) return { steps, end: "malformed" };
      if (entry.leaf) {
        const span = (1n << BigInt(3 + 9 * level)) - 1n;
        return { steps, end: "mapped", phys: entry.target | va & span, rights: this.granted(rights), level };
      }
      table = entry.target;
    }
  }

  granted(rights) {
    return this.data.cpu.ignores_read_only && !rights.u ? { ...rights, w: true } : rights;
  }
}

const ALL_RIGHTS = { w: true, u: true, x: true };

// Rights, narrowed by one entry more.
const through = (rights, { raw }) => ({
  w: rights.w && (raw & 2n) !== 0n, u: rights.u && (raw & 4n) !== 0n, x: rights.x && raw >> 63n === 0n,
});

const spell = (rights) => "r" + (rights.w ? "w" : "-") + (rights.x ? "x" : "-") + (rights.u ? "u" : "-");
const shade = (rights) => rights.w && rights.x ? "wx" : rights.x ? "x" : rights.u ? "u" : "s";

function flagNames(entry) {
  if (!entry.present) return entry.raw ? "not present" : "empty";
  return entry.fields.filter(([low, high, name]) => low === high && entry.raw >> BigInt(low) & 1n && name !== "ignored" &&
    name !== "reserved").map(([, , name]) => name).join(" ") + (entry.reserved ? " reserved bits " + hex(entry.reserved) : "");
}

// Elements: tag, attributes, children. Text is never parsed as markup.
function make(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function bitsTable(entry) {
  const rows = entry.fields.map(([low, high, name, zero, one]) => {
    const value = entry.raw >> BigInt(low) & (1n << BigInt(high - low + 1)) - 1n;
    const shown = low === high ? String(value) : "0x" + value.toString(16);
    return make("tr", { class: value ? "set" : "" }, make("td", { class: "n" }, low === high ? low : `${high}:${low}`),
      make("td", {}, name), make("td", { class: "n" }, shown), make("td", {}, value ? one : zero));
  });
  const head = make("tr", {}, ...["bits", "field", "value", "meaning"].map((word) => make("th", { scope: "col" }, word)));
  return make("table", { class: "bits" }, make("thead", {}, head), make("tbody", {}, ...rows));
}

function stepElement(step) {
  const what = !step.present ? "" : step.leaf ? `${{ 1: "4K", 2: "2M", 3: "1G" }[step.level]} page` : "table";
  return make("li", { class: step.reserved ? "bad" : "" },
    make("div", { class: "step" },
      make("strong", {}, LEVELS[step.level]), make("span", {}, ` entry ${step.index} at `), make("code", {}, hex(step.at)),
      make("span", {}, " is "), make("code", {}, hex(step.raw))),
    make("div", {}, step.present ? `${what} at ` : "", step.present ? make("code", {}, hex(step.target)) : "",
      make("span", { class: "flags" }, ` ${flagNames(step)} `),
      step.present ? make("span", { class: "rights " + (step.leaf ? shade(step.rights) : "") }, "so far " + spell(step.rights)) : ""),
    make("details", {}, make("summary", {}, "its bits"), bitsTable(step)));
}

// The address as the MMU takes it apart.
function splitAddress(va, levels) {
  const sign = 12 + 9 * levels;
  const parts = [make("span", { class: "part" }, make("small", {}, `sign 63:${sign}`),
    make("code", {}, "0x" + (va >> BigInt(sign)).toString(16)))];
  for (let level = levels; level > 0; level--) {
    parts.push(make("span", { class: "part" }, make("small", {}, `${LEVELS[level]} ${11 + 9 * level}:${3 + 9 * level}`),
      make("code", {}, String(va >> BigInt(3 + 9 * level) & 511n))));
  }
  parts.push(make("span", { class: "part" }, make("small", {}, "offset 11:0"), make("code", {}, "0x" + (va & 0xfffn).toString(16))));
  return make("p", { class: "split" }, ...parts);
}
