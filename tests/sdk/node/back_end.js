// A back end as the classic firmware update samples have it, with the official service SDK: calls the direct method,
// prints the answer, polls the twin each 500 ms and prints each new status, and at the end asks which devices have the
// update.
//
// Arguments: device id, image URL, and how the URL is given: `object` (as the samples of 2016) or `text` (as those of
// 2022). The environment gives the service connection string (CONNECTION_STRING).

'use strict';

const { Client, Registry } = require('azure-iothub');

const [deviceId, uri, form] = process.argv.slice(2);
const client = Client.fromConnectionString(process.env.CONNECTION_STRING);
const registry = Registry.fromConnectionString(process.env.CONNECTION_STRING);

async function main() {
    const payload = form === 'text' ? uri : { fwPackageUri: uri };
    const call = { methodName: 'firmwareUpdate', payload, responseTimeoutInSeconds: 30 };
    const { result } = await client.invokeDeviceMethod(deviceId, call);
    console.log('answer', result.status, result.payload.message);

    const end = Date.now() + 60_000;
    let shown;
    while (!['applyComplete', 'applyFailed', 'downloadfailed'].includes(shown)) {
        if (Date.now() > end) throw new Error('the update did not end within a minute');
        await new Promise((resolve) => setTimeout(resolve, 500));
        const { responseBody: twin } = await registry.getTwin(deviceId);
        const { status } = twin.properties.reported.iothubDM?.firmwareUpdate ?? {};
        if (status !== shown) console.log('status', status);
        shown = status;
    }

    const where = "properties.reported.iothubDM.firmwareUpdate.status = 'applyComplete'";
    const { result: twins } = await registry.createQuery(`SELECT * FROM devices WHERE ${where}`).nextAsTwin();
    for (const twin of twins) console.log('complete', twin.deviceId);
}

main().then(
    () => process.exit(0),
    (error) => {
        console.error(error);
        process.exit(1);
    },
);
