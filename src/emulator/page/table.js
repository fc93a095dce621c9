// The table of devices: filtered, sorted, a page at a time, so that ten thousand are as quick as ten.

import { addressOf, ago, chosen, element, setText, showConnection, showPhase } from './tools.js';

const PAGE = 100; // rows at a time
const collator = new Intl.Collator('en', { numeric: true });

const SORTS = {
  connected: (row) => (row.connected ? '0' : '1') + (row.since ?? ''),
  firmware: (row) => row.firmware ?? '',
  update: (row) => (row.update ? `${{ running: 0, failed: 1, done: 2 }[row.update.phase]}${row.update.word}` : '9'),
  activity: (row) => row.activity ?? '',
};

const SHOWS = {
  all: () => true,
  connected: (row) => row.connected,
  away: (row) => !row.connected,
  running: (row) => row.update?.phase === 'running',
  failed: (row) => row.update?.phase === 'failed',
};

export class Table {
  constructor(devices) {
    this.devices = devices; // Map of id to row
    this.body = document.querySelector('#devices tbody');
    this.order = []; // every id, in the order of ids
    this.sort = { by: 'id', down: false };
    this.page = 0;
    this.rows = new Map(); // id to elements of the rows on this page
    for (const head of document.querySelectorAll('#devices th')) {
      head.querySelector('button').addEventListener('click', () => this.sortBy(head.dataset.sort));
    }
    this.filter = document.getElementById('filter');
    this.show = document.getElementById('show');
    this.filter.addEventListener('input', () => this.turnTo(0));
    this.show.addEventListener('change', () => this.turnTo(0));
    document.getElementById('previous').addEventListener('click', () => this.turnTo(this.page - 1));
    document.getElementById('next').addEventListener('click', () => this.turnTo(this.page + 1));
    this.body.addEventListener('click', (event) => {
      const row = event.target.closest('tr');
      if (row && !event.target.closest('a') && !getSelection().toString()) row.querySelector('a').click();
    });
  }

  /** Devices came or went. */
  membersChanged() {
    this.order = [...this.devices.keys()].sort(collator.compare);
  }

  sortBy(by) {
    this.sort = { by, down: this.sort.by === by ? !this.sort.down : by === 'activity' };
    for (const head of document.querySelectorAll('#devices th')) {
      if (head.dataset.sort === by) head.setAttribute('aria-sort', this.sort.down ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    }
    this.turnTo(0);
  }

  turnTo(page) {
    this.page = page;
    this.render();
  }

  /** The ids that pass the filter, in order. */
  matching() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = SHOWS[this.show.value];
    const fits = (row) => {
      if (!shown(row)) return false;
      if (words.length === 0) return true;
      const text = [row.id, row.firmware, row.update?.word, row.connected ? 'connected' : 'not connected'];
      const hay = text.join(' ').toLowerCase();
      return words.every((word) => hay.includes(word));
    };
    const ids = this.order.filter((id) => fits(this.devices.get(id)));
    const key = SORTS[this.sort.by];
    if (key) {
      const keys = new Map(ids.map((id) => [id, key(this.devices.get(id))]));
      // Stable: devices that are alike stay in the order of their ids.
      ids.sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        const order = x < y ? -1 : x > y ? 1 : 0;
        return this.sort.down ? -order : order;
      });
    } else if (this.sort.down) ids.reverse();
    return ids;
  }

  render() {
    const ids = this.matching();
    const pages = Math.max(1, Math.ceil(ids.length / PAGE));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const shown = ids.slice(this.page * PAGE, (this.page + 1) * PAGE);
    const rows = new Map(shown.map((id) => [id, this.rows.get(id) ?? this.newRow(id)]));
    for (const [id, row] of this.rows) if (!rows.has(id)) row.element.remove();
    this.rows = rows;
    this.chosen = chosen();
    let at = this.body.firstChild;
    for (const [id, row] of rows) {
      if (row.element !== at) this.body.insertBefore(row.element, at);
      else at = at.nextSibling;
      this.fill(row, this.devices.get(id));
    }
    this.count(ids.length, pages);
  }

  count(matching, pages) {
    const all = this.devices.size;
    const count = (n) => `${n.toLocaleString('en')} ${n === 1 ? 'device' : 'devices'}`;
    setText(
      document.getElementById('devices-count'),
      matching === all ? count(all) : `${matching.toLocaleString('en')} of ${count(all)}`,
    );
    const none = document.getElementById('none');
    none.hidden = matching > 0;
    setText(none, all === 0 ? 'No device is registered.' : 'No device matches the filter.');
    document.getElementById('pager').hidden = pages === 1;
    setText(document.getElementById('page-number'), `Page ${this.page + 1} of ${pages}`);
    document.getElementById('previous').disabled = this.page === 0;
    document.getElementById('next').disabled = this.page === pages - 1;
  }

  newRow(id) {
    const link = element('a', { href: addressOf(id) }, id);
    const row = { link };
    for (const cell of ['connection', 'firmware', 'update', 'activity']) row[cell] = element('td', { className: cell });
    row.state = element('span', { className: 'state' });
    row.since = element('span', { className: 'muted since' });
    row.connection.append(row.state, ' ', row.since);
    row.word = element('span', { className: 'state' });
    row.percent = element('span', { className: 'muted' });
    row.update.append(row.word, ' ', row.percent);
    row.element = element('tr', {}, element('th', { scope: 'row' }, link));
    row.element.dataset.id = id;
    row.element.append(row.connection, row.firmware, row.update, row.activity);
    return row;
  }

  fill(row, device) {
    showConnection(row.state, device);
    setText(row.since, device.since ? ago(device.since) : '');
    setText(row.firmware, device.firmware ?? '–');
    showPhase(row.word, device.update);
    const percent = device.update?.percent;
    setText(row.percent, percent === undefined ? '' : `${Math.floor(percent)} %`);
    setText(row.activity, device.activity ? ago(device.activity) : 'never');
    row.activity.title = device.activity ?? '';
    if (device.id === this.chosen) row.link.setAttribute('aria-current', 'true');
    else row.link.removeAttribute('aria-current');
  }
}
