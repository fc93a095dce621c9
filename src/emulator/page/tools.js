// What the parts of the page share: elements, times and figures in words, and asking for a fault.

export const byId = (id) => document.getElementById(id);

/** A new element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Changes a text only when it differs, so that selections and readers are left alone. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** The address of a device on this page. */
export const addressOf = (id) => `#/${encodeURIComponent(id)}`;

/** The device that the address names; empty when it names none. */
export function chosen() {
  try {
    return location.hash.startsWith('#/') ? decodeURIComponent(location.hash.slice(2)) : '';
  } catch {
    return ''; // No device has such a name.
  }
}

let clockOffset = 0; // the emulator's clock minus this one, milliseconds

/** The emulator says what time it is. */
export function setClock(stamp) {
  clockOffset = Date.parse(stamp) - Date.now();
}

/** The emulator's time now. */
export const now = () => Date.now() + clockOffset;

/** A span of time in two figures at most: `4 s`, `3 min`, `2 h 5 min`. */
export function span(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d`;
}

export const ago = (stamp) => `${span(now() - Date.parse(stamp))} ago`;

/** Tells people who listen instead of looking. */
export function announce(text) {
  byId('announce').textContent = text;
}

/** Asks the emulator for a fault. The header is what no page of another site may send. */
export async function fault(path) {
  try {
    const answer = await fetch(path, { method: 'POST', headers: { 'X-Emulator-Page': '1' } });
    if (!answer.ok) announce(`The emulator refused: ${await answer.text()}`);
  } catch {
    announce('The emulator does not answer.');
  }
}

/** Bytes for people: `28.8 MB`. */
export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const units = ['kB', 'MB', 'GB', 'TB'];
  let value = count / 1000;
  while (value >= 999.95 && units.length > 1) {
    value /= 1000;
    units.shift();
  }
  return `${value.toFixed(1)} ${units[0]}`;
}

/** `● connected`, `○ not connected`, `⊘ disabled`: sign and word, then colour. */
export function showConnection(target, device) {
  const [state, text] = !device.enabled
    ? ['bad', '⊘ disabled']
    : device.connected
      ? ['good', '● connected']
      : ['off', '○ not connected'];
  target.dataset.state = state;
  setText(target, text);
}

/** The word of an update with a sign of how it stands. */
export function showPhase(target, update) {
  target.dataset.state = update ? { running: 'busy', done: 'good', failed: 'bad' }[update.phase] : 'off';
  setText(target, update ? `${{ running: '▸', done: '✓', failed: '✕' }[update.phase]} ${update.word}` : '–');
}
