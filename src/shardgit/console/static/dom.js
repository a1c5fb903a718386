// Elements made and changed by text alone: nothing that comes from outside is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return the element of an id. */
export const by = (id) => document.getElementById(id);

/** Make an element with attributes and children; a child may be text. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an element of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Change an element's text, only where it differs: a reader's place on the page stays. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Have a list's children show values, in order: those of a key stay the same element. */
export function keep(parent, values, key, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const value of values) {
    const name = String(key(value));
    let child = known.get(name);
    known.delete(name);
    if (child === undefined) {
      child = create(value);
      child.dataset.key = name;
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, value);
  }
  for (const child of known.values()) child.remove();
}

/**
 * A table whose rows are kept by key. A column is {title, text(value), number, show(cell, value)}: its cell shows the text,
 * or what ``show`` makes of it. The first column is the row's header.
 */
export class Table {
  constructor(table, columns, key) {
    this.columns = columns;
    this.key = key;
    this.table = table;
    table.setAttribute("role", "table");
    const titles = columns.map((column) =>
      make("th", { scope: "col", role: "columnheader", class: column.number ? "number" : null }, column.title));
    const head = make("tr", { role: "row" }, ...titles);
    this.body = make("tbody", { role: "rowgroup" });
    table.append(make("thead", { role: "rowgroup" }, head), this.body);
  }

  show(values) {
    keep(this.body, values, this.key, () => this.#row(), (row, value) => {
      this.columns.forEach((column, at) => {
        const cell = row.children[at];
        if (column.show) column.show(cell, value);
        else say(cell, column.text(value));
      });
    });
  }

  #row() {
    const cells = this.columns.map((column, at) => {
      const common = { class: [column.number ? "number" : "", column.class ?? ""].join(" ").trim() || null };
      return at === 0
        ? make("th", { ...common, scope: "row", role: "rowheader" })
        : make("td", { ...common, role: "cell", "data-title": column.title });
    });
    return make("tr", { role: "row" }, ...cells);
  }
}
