// A twin as lines of JSON, and what changed in it since the last time. Builds text only, never markup.

const KEPT = 8000; // milliseconds that a change stays marked

/** Names a member by its path; unlike joined names this cannot be two things. */
const name = (path) => JSON.stringify(path);

const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

/**
 * Every member that differs: `{path, kind, old}` with kind added, changed or removed. Objects are compared member
 * by member, everything else as a whole.
 */
export function difference(before, after, path = []) {
  const found = [];
  for (const key of Object.keys(after)) {
    const here = [...path, key];
    if (!(key in before)) found.push({ path: here, kind: 'added' });
    else if (isObject(before[key]) && isObject(after[key])) found.push(...difference(before[key], after[key], here));
    else if (JSON.stringify(before[key]) !== JSON.stringify(after[key])) {
      found.push({ path: here, kind: 'changed', old: before[key] });
    }
  }
  for (const key of Object.keys(before)) {
    if (!(key in after)) found.push({ path: [...path, key], kind: 'removed', old: before[key] });
  }
  return found;
}

/** One section of a twin on the page. */
export class TwinView {
  constructor(element) {
    this.element = element;
    this.value = undefined;
    this.marks = new Map();
  }

  /** Shows `value`, and marks what is other than before. */
  show(value) {
    if (this.value !== undefined) {
      const text = JSON.stringify(value);
      if (text === this.text) return;
      const at = Date.now();
      for (const change of difference(this.value, value)) this.marks.set(name(change.path), { ...change, at });
      this.marks.delete(name(['$version'])); // Counted in the heading.
      this.text = text;
    } else {
      this.text = JSON.stringify(value);
    }
    this.value = value;
    this.render();
  }

  /** Forgets everything: another device comes. */
  clear() {
    clearTimeout(this.timer);
    this.value = undefined;
    this.marks.clear();
    this.element.replaceChildren();
  }

  render() {
    const now = Date.now();
    for (const [key, mark] of this.marks) if (mark.at + KEPT <= now) this.marks.delete(key);
    const lines = [];
    this.members(this.value, [], 1, lines);
    const all = lines.length > 0 ? [line('{', 0), ...lines, line('}', 0)] : [line('{}', 0)];
    this.element.replaceChildren(...all);
    clearTimeout(this.timer);
    const oldest = Math.min(...[...this.marks.values()].map((mark) => mark.at));
    if (this.marks.size > 0) this.timer = setTimeout(() => this.render(), oldest + KEPT - now + 10);
  }

  /** The lines of an object's members, the removed ones among them. What came with `whole` is marked as that. */
  members(object, path, depth, lines, whole) {
    const gone = [...this.marks.values()]
      .filter(({ kind, path: at }) => kind === 'removed' && name(at.slice(0, -1)) === name(path))
      .map((mark) => mark.path.at(-1))
      .filter((key) => !(key in object));
    const kept = Object.keys(object).filter((key) => !(path.length === 0 && key === '$version'));
    const keys = [...kept, ...gone].sort();
    for (const [at, key] of keys.entries()) {
      const here = [...path, key];
      const own = this.marks.get(name(here));
      const mark = own && own.at >= (whole?.at ?? 0) ? own : whole;
      const value = key in object ? object[key] : own.old;
      const comma = at + 1 < keys.length ? ',' : '';
      const label = JSON.stringify(key);
      if (isObject(value) && Object.keys(value).length > 0) {
        lines.push(line(`${label}: {`, depth, mark, here));
        // An object changes by its members; one that is marked so was no object before, and all of it is new.
        this.members(value, here, depth + 1, lines, mark?.kind === 'changed' ? { ...mark, kind: 'added' } : mark);
        lines.push(line(`}${comma}`, depth, mark));
      } else {
        lines.push(line(`${label}: ${JSON.stringify(value)}${comma}`, depth, mark, here));
      }
    }
  }
}

const SIGNS = { added: '+', changed: '~', removed: '−' };

function line(text, depth, mark, path) {
  const element = document.createElement('div');
  element.className = 'json-line';
  element.style.setProperty('--depth', depth);
  element.textContent = text;
  if (path) element.dataset.path = path.join('.');
  if (mark) {
    element.dataset.change = mark.kind;
    const sign = document.createElement('span');
    sign.className = 'sign';
    sign.textContent = SIGNS[mark.kind];
    element.prepend(sign);
    element.title = mark.kind === 'changed' ? `changed, was ${JSON.stringify(mark.old)}` : mark.kind;
  }
  return element;
}
