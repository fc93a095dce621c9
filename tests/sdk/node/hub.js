// The emulator under test, as the scripts see it: its ready file, its controls, both SDKs' clients.
//
// The environment names the ready file (READY_FILE) and the emulator's CA (NODE_EXTRA_CA_CERTS). Nothing of the SDKs
// is changed: both connect to the hub's host name, the device SDK to port 8883 or 443, the service SDK to 443.

'use strict';

const fs = require('node:fs');
const https = require('node:https');

const { Client: Device } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const { Client: Service, JobClient, Registry } = require('azure-iothub');

const READY = JSON.parse(fs.readFileSync(process.env.READY_FILE, 'utf8'));

// Calls the emulator's control interface; the parsed answer, if it has one.
function control(method, path, body) {
    const options = { method, host: READY.hubName, port: READY.httpsPort, path: `/emulator${path}` };
    return new Promise((resolve, reject) => {
        const request = https.request(options, (response) => {
            let text = '';
            response.setEncoding('utf8');
            response.on('data', (part) => (text += part));
            response.on('end', () => {
                if (response.statusCode >= 300) reject(new Error(`${method} ${path}: ${response.statusCode} ${text}`));
                else resolve(text ? JSON.parse(text) : undefined);
            });
        });
        request.on('error', reject);
        request.end(body && JSON.stringify(body));
    });
}

const registry = Registry.fromConnectionString(READY.serviceConnectionString);
const service = Service.fromConnectionString(READY.serviceConnectionString);
const jobs = JobClient.fromConnectionString(READY.serviceConnectionString);

// Registers a device for one test; its connection string.
async function newDevice(t, deviceId) {
    const { responseBody } = await registry.create({ deviceId });
    t.after(() => registry.delete(deviceId).catch(() => {}));
    const key = responseBody.authentication.symmetricKey.primaryKey;
    return `HostName=${READY.hubName};DeviceId=${deviceId};SharedAccessKey=${key}`;
}

// A connected client of the device SDK that ends with the test.
async function connect(t, connectionString, { transport = Mqtt, ...options } = {}) {
    const client = Device.fromConnectionString(connectionString, transport);
    t.after(() => client.close().catch(() => {}));
    await client.setOptions(options);
    await client.open();
    return client;
}

// Answers each call of these methods with status 200 and what was asked.
function answerMethods(client, ...names) {
    for (const name of names) {
        client.onDeviceMethod(name, (request, response) => response.send(200, { echo: request.payload, name }));
    }
}

// Calls a method through the service SDK; the device's status and payload.
async function invoke(deviceId, methodName, payload, timeouts = {}) {
    const { result } = await service.invokeDeviceMethod(deviceId, { methodName, payload, ...timeouts });
    return result;
}

// The device's twin by the device SDK.
function twinOf(client) {
    return new Promise((resolve, reject) => client.getTwin((error, twin) => (error ? reject(error) : resolve(twin))));
}

// Reports a patch; rejects when the hub refuses it.
function report(twin, patch) {
    return new Promise((resolve, reject) => {
        twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()));
    });
}

// Waits until `condition()` is true, or resolves to true.
async function waitFor(condition, what, seconds = 30) {
    const end = Date.now() + seconds * 1000;
    while (!(await condition())) {
        if (Date.now() > end) throw new Error(`${what} did not happen within ${seconds} s`);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

// The SDK subscribes by itself, and says nothing when it has.
function subscribed(deviceId, to) {
    const has = async () => to in (await control('GET', `/devices/${deviceId}`)).subscriptions;
    return waitFor(has, `the subscription to ${to}`);
}

// Every page of a query.
async function everyRow(query) {
    const rows = [];
    do {
        rows.push(...(await query.next()).result);
    } while (query.hasMoreResults);
    return rows;
}

module.exports = {
    READY, answerMethods, connect, control, everyRow, invoke, jobs, newDevice, registry, report, service, subscribed,
    twinOf, waitFor,
};
