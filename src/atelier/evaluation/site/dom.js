"use strict";

// h("p.note", {title: "…"}, "text", child): an element. Whatever is shown is set as text, never as HTML.
function h(spec, ...content) {
  const [tag, ...classes] = spec.split(".");
  const element = document.createElement(tag);
  element.classList.add(...classes);
  for (const one of content.flat(Infinity)) {
    if (one === null || one === undefined || one === false) continue;
    if (one instanceof Node || typeof one !== "object") element.append(one);
    else set(element, one);
  }
  return element;
}

function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value === false || value === null || value === undefined) element.removeAttribute(key);
    else element.setAttribute(key, value === true ? "" : value);
  }
  return element;
}

// Buttons of which one is pressed; choose(value) is called with its value.
function choice(label, options, chosen, choose) {
  const buttons = options.map(([value, text]) =>
    h("button", { type: "button", "aria-pressed": String(value === chosen), click: () => press(value) }, text));
  function press(value) {
    options.forEach(([one], index) => buttons[index].setAttribute("aria-pressed", String(one === value)));
    choose(value);
  }
  return h("div.choice", { role: "group", "aria-label": label }, buttons);
}

function labelled(text, control) {
  return h("label.control", h("span", text), control);
}

function select(options, chosen, choose) {
  const element = h("select", { change: () => choose(element.value) },
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
  return element;
}

function section(title, ...content) {
  const id = title.toLowerCase().replace(/[^a-z]+/g, "-");
  return h("section.block", { "aria-labelledby": id }, h("h2", { id }, title), content);
}

function folded(title, ...content) {
  return h("details", h("summary", title), content);
}

// A command to copy.
function command(text) {
  const button = h("button.copy", { type: "button", click: copy }, "Copy");
  async function copy() {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch { // where a page may not write to the clipboard, the text is selected for the user to do it
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }
  const code = h("code", { tabindex: 0 }, text);
  return h("div.command", code, button);
}

// Arrow keys move among the buttons of a grid, of which one alone is reached by Tab.
function rove(grid) {
  const items = () => [...grid.children].filter(one => !one.hidden && one.tagName === "BUTTON");
  const first = items()[0];
  if (first) first.tabIndex = 0;
  grid.addEventListener("keydown", event => {
    const all = items(), here = all.indexOf(document.activeElement);
    if (here < 0) return;
    const across = all.filter(one => one.offsetTop === all[0].offsetTop).length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    const next = all[here + step];
    if (!next) return;
    event.preventDefault();
    all[here].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
