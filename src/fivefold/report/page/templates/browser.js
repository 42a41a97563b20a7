// The page that explains logs: Python beside it, started once; what comes back is drawn as text, never as markup.

const byId = (id) => document.getElementById(id);
let ask, rules;

async function start() {
  const { loadPyodide } = await import("./pyodide/pyodide.mjs");
  const python = await loadPyodide({ indexURL: new URL("./pyodide/", location.href).href });
  const sources = await fetch("./fivefold.zip");
  if (!sources.ok) throw new Error(`fivefold.zip: ${sources.status}`);
  python.unpackArchive(await sources.arrayBuffer(), "zip");
  python.runPython("import json\nfrom fivefold.report import in_browser");
  ask = (name, ...given) => {
    const call = python.globals.get("json").dumps(python.pyimport("fivefold.report.in_browser")[name](...given));
    return JSON.parse(call);
  };
  rules = new PageTables(ask("entry_rules"), { frame: { rows: 0 } }, { entry: null });
  byId("state").textContent = "Ready.";
  for (const button of ["explain", "walk"]) byId(button).disabled = false;
  walkAddress();
  document.body.dataset.ready = "yes";
}

function explainLog() {
  const width = Math.max(40, Math.min(100, Math.floor(byId("report").parentElement.clientWidth / 8.2)));
  const told = ask("explain_log", byId("log").value, width);
  byId("report").textContent = told.error || told.lines.join("\n");
  byId("report").classList.toggle("bad", Boolean(told.error));
}

function walkAddress() {
  const told = ask("walk_address", byId("address").value);
  byId("walk-answer").textContent = told.error || told.address;
  byId("walks").replaceChildren(...(told.modes || []).map((mode) => modeElement(BigInt(told.address), mode)));
}

function modeElement(va, mode) {
  const title = make("h3", {}, mode.levels === 5 ? "five levels" : "four levels");
  if (!mode.canonical) {
    return make("div", {}, title, splitAddress(va, mode.levels),
      make("p", { class: "end bad" }, `not canonical: bits 63 to ${11 + 9 * mode.levels} differ, and the CPU refuses it before it reads a table`));
  }
  let rights = ALL_RIGHTS;
  const steps = mode.steps.map((step) => {
    const entry = rules.entry(BigInt(step.entry), step.level);
    rights = through(rights, entry);
    return stepElement({ ...entry, index: Number(BigInt(step.at) & 0xfffn) / 8, at: BigInt(step.at), rights });
  });
  return make("div", {}, title, splitAddress(va, mode.levels), make("p", {}, mode.area ? `in ${mode.area}` : "in no area"),
    make("ol", { class: "steps" }, ...steps), make("p", { class: "end" }, `effective ${spell(rights)}`));
}

byId("example").addEventListener("change", (event) => { byId("log").value = event.target.value; });
byId("explain").addEventListener("click", explainLog);
byId("walk-form").addEventListener("submit", (event) => { event.preventDefault(); if (ask) walkAddress(); });
if (location.protocol !== "file:") {
  start().catch((error) => { byId("state").textContent = `Python did not start: ${error}`; });
}
