// A back end as the firmware update tutorial of 2018 has it, with the official service SDK: it tags the device, adds a
// configuration that sets the desired property `firmware` of all devices with that tag, and looks at its metrics and at
// what the device reports until that has the version.
//
// Arguments: device id, image URL, version, SHA-256 of the file. The environment gives the service connection string
// (CONNECTION_STRING).

'use strict';

const { Registry } = require('azure-iothub');

const [deviceId, fwPackageURI, fwVersion, fwPackageCheckValue] = process.argv.slice(2);
const registry = Registry.fromConnectionString(process.env.CONNECTION_STRING);

const id = `firmware-${fwVersion.replaceAll('.', '-')}`;
const counted = (condition) =>
    `SELECT deviceId FROM devices WHERE configurations.[[${id}]].status = 'Applied' AND (${condition})`;
const reported = (status) => `properties.reported.firmware.fwUpdateStatus = '${status}'`;

const configuration = {
    id,
    schemaVersion: '1.0',
    content: { deviceContent: { 'properties.desired.firmware': { fwVersion, fwPackageURI, fwPackageCheckValue } } },
    targetCondition: "tags.devicetype = 'chiller'",
    priority: 20,
    metrics: {
        queries: {
            current: counted(`${reported('current')} AND properties.reported.firmware.currentFwVersion = '${fwVersion}'`),
            applying: counted(['downloading', 'verifying', 'applying'].map(reported).join(' OR ')),
            rebooting: counted(reported('rebooting')),
            error: counted(reported('error')),
            rolledback: counted(reported('rolledback')),
        },
    },
};

async function main() {
    await registry.updateTwin(deviceId, { tags: { devicetype: 'chiller' } }, '*');
    await registry.addConfiguration(configuration);
    const end = Date.now() + 60_000;
    for (;;) {
        const { responseBody: now } = await registry.getConfiguration(id);
        const { current, error, rolledback } = now.metrics.results;
        if (error || rolledback) throw new Error(JSON.stringify(now.metrics.results));
        if (current === 1) {
            const { targetedCount, appliedCount } = now.systemMetrics.results;
            console.log('targeted', targetedCount, 'applied', appliedCount, 'current', current);
            return;
        }
        if (Date.now() > end) throw new Error(`not current within a minute: ${JSON.stringify(now)}`);
        await new Promise((resolve) => setTimeout(resolve, 500));
    }
}

main().then(
    () => process.exit(0),
    (error) => {
        console.error(error);
        process.exit(1);
    },
);
