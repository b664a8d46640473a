"use strict";
// The answers: rows arrive deflated, a page of them stands in the document at any time, however many there are.
(async () => {
  const packed = document.getElementById("packed");
  if (!packed) return;
  const FIELDS = ["task", "id", "prompt", "gold", "base_zero_shot", "base_few_shot", "tuned",
    "score_base_zero_shot", "score_base_few_shot", "score_tuned", "outcome"];
  const PAGE = matchMedia("(max-width: 639px)").matches ? 5 : 10, LONG_PROMPT = 280, MOST_WORDS = 600;
  const byId = (id) => document.getElementById(id);
  const places = {};
  const strings = JSON.parse(byId("strings").textContent);
  const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = (await new Response(stream).json()).map((values) => {
    const row = Object.fromEntries(FIELDS.map((field, at) => [field, values[at]]));
    row.place = places[row.task] = (places[row.task] ?? 0) + 1;
    row.before = row.base_few_shot ?? row.base_zero_shot;
    row.score_before = row.base_few_shot === null ? row.score_base_zero_shot : row.score_base_few_shot;
    row.text = [row.id, row.prompt, row.gold, row.before, row.tuned].join("\n").toLowerCase();
    return row;
  });

  // Words, single Chinese characters, or single signs: what is compared one by one.
  const split = (text) => text.match(/\p{Script=Han}|[\p{L}\p{N}_]+|\s+|[^\s]/gu) ?? [];

  function matched(left, right) {
    // For each word of `left`: does it stand in the longest common subsequence with `right`?
    const n = left.length, m = right.length, width = m + 1;
    const best = new Uint16Array((n + 1) * width);
    for (let i = n - 1; i >= 0; i--) {
      for (let j = m - 1; j >= 0; j--) {
        best[i * width + j] = left[i] === right[j]
          ? best[(i + 1) * width + j + 1] + 1
          : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
      }
    }
    const same = new Array(n).fill(false);
    for (let i = 0, j = 0; i < n && j < m;) {
      if (left[i] === right[j]) { same[i++] = true; j++; }
      else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i++;
      else j++;
    }
    return same;
  }

  function write(place, text, gold, name) {
    place.replaceChildren();
    if (!text) { place.textContent = strings.empty; return; }
    const all = split(text), isWord = (part) => !/^\s/.test(part);
    const mine = all.filter(isWord).slice(0, MOST_WORDS), theirs = split(gold).filter(isWord).slice(0, MOST_WORDS);
    const same = matched(mine.map((w) => w.toLowerCase()), theirs.map((w) => w.toLowerCase()));
    let word = 0, run = "", marked = false, pending = "";
    const flush = () => {
      if (!run) return;
      if (marked) {
        const mark = document.createElement(name);
        if (name === "span") mark.className = "missed";
        mark.textContent = run;
        place.append(mark);
      } else place.append(run);
      run = "";
    };
    for (const part of all) {
      if (!isWord(part)) { pending += part; continue; }
      const differs = same[word++] === false;
      if (differs === marked) run += pending + part;
      else { flush(); place.append(pending); marked = differs; run = part; }
      pending = "";
    }
    flush();
  }

  const score = (value) => (value === null ? "" : value.toFixed(3));

  function show(row) {
    const item = byId("row").content.cloneNode(true);
    const find = (selector) => item.querySelector(selector);
    find(".outcome").textContent = strings.outcome[row.outcome];
    find(".outcome").classList.add(row.outcome);
    find(".where").textContent = strings.row.replace("{number}", number(row.place))
      .replace("{title}", () => strings.tasks[row.task] ?? row.task);
    find(".ids code").textContent = row.id;
    const prompt = find(".prompt");
    if (row.prompt.length > LONG_PROMPT) {
      const details = document.createElement("details"), summary = document.createElement("summary");
      summary.textContent = `${row.prompt.slice(0, LONG_PROMPT - 60).replace(/\s+[^\s]{0,20}$/, "")}\u00a0…`;
      details.append(summary, row.prompt);
      prompt.append(details);
    } else prompt.textContent = row.prompt;
    write(find(".gold dd"), row.gold, row.tuned ?? "", "span");
    write(find(".before dd"), row.before, row.gold, "mark");
    write(find(".after dd"), row.tuned, row.gold, "mark");
    find(".before .points").textContent = score(row.score_before);
    find(".after .points").textContent = score(row.score_tuned);
    return item;
  }

  const form = document.querySelector(".controls"), query = byId("query"), task = byId("task"), showing = byId("showing");
  const number = (value) => value.toLocaleString("en");
  let found = rows, first = 0;

  function filter() {
    const words = query.value.toLowerCase().trim(), wanted = task ? task.value : "";
    const outcome = form.elements.outcome.value;
    const counts = { all: 0, learned: 0, lost: 0, same: 0, wrong: 0 };
    found = [];
    for (const row of rows) {
      if ((wanted && row.task !== wanted) || (words && !row.text.includes(words))) continue;
      counts.all++;
      counts[row.outcome]++;
      if (!outcome || row.outcome === outcome) found.push(row);
    }
    for (const output of form.querySelectorAll("[data-count]")) output.textContent = number(counts[output.dataset.count]);
    first = 0;
    render();
  }

  function render() {
    const last = Math.min(first + PAGE, found.length);
    byId("rows").replaceChildren(...found.slice(first, last).map(show));
    showing.textContent = found.length
      ? showing.dataset.showing.replace("{from}", number(first + 1)).replace("{to}", number(last)).replace("{total}", number(found.length))
      : showing.dataset.nothing;
    byId("previous").disabled = first === 0;
    byId("next").disabled = last >= found.length;
  }

  function turn(by) {
    first += by;
    render();
    showing.scrollIntoView({ block: "start" });
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  byId("previous").addEventListener("click", () => turn(-PAGE));
  byId("next").addEventListener("click", () => turn(PAGE));
  filter();
  byId("browser").hidden = false;
  document.documentElement.dataset.ready = "yes";
})();
// On paper nothing can be opened: what belongs to the report is opened for it.
addEventListener("beforeprint", () => document.querySelectorAll("details.print").forEach((d) => { d.open = true; }));
