// The page: keeps the newest state of hub and devices, and draws what changed once a frame.

import { Detail } from './device.js';
import { Table } from './table.js';
import { announce, byId, fault, now, setClock, setText, span } from './tools.js';
import { Updates } from './updates.js';

const devices = new Map();
let hub;
let about = {};

const table = new Table(devices);
const updates = new Updates(devices);
const detail = new Detail(devices);

let drawing = false;

/** Draws soon, once for all that changes until then. */
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawHub();
    table.render();
    updates.render();
    detail.renderHead();
  });
}

function drawHub() {
  if (!hub) return;
  setText(byId('hub-name'), about.name ?? '');
  setText(byId('mqtt-port'), String(about.mqttPort ?? '–'));
  setText(byId('https-port'), String(about.httpsPort ?? '–'));
  const count = (n) => n.toLocaleString('en');
  setText(byId('connected'), `${count(hub.connected)} of ${count(hub.registered)}`);
  setText(byId('uptime'), span(now() - Date.parse(hub.started)));
  byId('down').hidden = !hub.down;
  document.title = about.name ? `${about.name} – IoT Hub emulator` : 'IoT Hub emulator';
}

function receive(event) {
  const data = JSON.parse(event.data);
  setClock(data.now);
  hub = data.hub;
  let members = false;
  if (event.type === 'snapshot') {
    devices.clear();
    members = true;
  }
  for (const device of data.devices) {
    members ||= !devices.has(device.id);
    updates.noticed(device, devices.get(device.id));
    devices.set(device.id, device);
  }
  for (const id of data.removed) members = devices.delete(id) || members;
  if (members) table.membersChanged();
  const changed = new Set([...data.devices.map((device) => device.id), ...data.removed]);
  detail.changed(changed, event.type === 'snapshot');
  draw();
}

function setLive(state, text) {
  const badge = byId('live');
  if (badge.textContent === text) return;
  badge.dataset.state = state;
  badge.textContent = text;
  announce(text);
}

function connect() {
  const source = new EventSource('/events');
  source.addEventListener('snapshot', receive);
  source.addEventListener('delta', receive);
  source.addEventListener('open', async () => {
    setLive('good', '● Live');
    // Another emulator may have come in place of the one before.
    try {
      about = await (await fetch('/about')).json();
    } catch {
      return; // It is gone again; the next time tells.
    }
    draw();
  });
  source.addEventListener('error', () => {
    setLive('bad', '○ Reconnecting');
    if (source.readyState !== EventSource.CLOSED) return; // It tries again by itself.
    setTimeout(connect, 2000);
  });
}

byId('outage').addEventListener('click', () => fault('/outage?seconds=10'));
byId('up').addEventListener('click', () => fault('/up'));
addEventListener('hashchange', () => {
  detail.follow();
  draw();
});
addEventListener('keydown', (event) => {
  const typing = event.target.closest?.('input, select, textarea');
  if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    byId('filter').focus();
    event.preventDefault();
  }
  if (event.key === 'Escape' && !typing) detail.close();
});
setInterval(draw, 1000); // Ages count on by themselves.
connect();
detail.follow();
