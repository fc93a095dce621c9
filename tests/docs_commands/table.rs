//! Which commands no test types, and why; and what each page takes for granted.

use super::pages::Command;

/// A command that is not typed here: the page (`None`: any), how it begins, and what holds it instead.
pub(crate) struct NotTyped {
    /// The page, from the project's folder; `None`: any.
    pub(crate) page: Option<&'static str>,
    /// How the command begins.
    pub(crate) begins: &'static str,
    /// The reason, and what holds it instead.
    pub(crate) why: &'static str,
}

impl NotTyped {
    /// Whether the command is this one.
    pub(crate) fn is_for(&self, command: &Command) -> bool {
        self.page.is_none_or(|page| command.place.page == page)
            && command.text.starts_with(self.begins)
    }
}

const fn anywhere(begins: &'static str, why: &'static str) -> NotTyped {
    NotTyped {
        page: None,
        begins,
        why,
    }
}

const fn on(page: &'static str, begins: &'static str, why: &'static str) -> NotTyped {
    NotTyped {
        page: Some(page),
        begins,
        why,
    }
}

/// All of them.
pub(crate) const NOT_TYPED: &[NotTyped] = &[
    anywhere("az ", "needs a subscription of Azure"),
    anywhere(
        "make ",
        "builds and tests the project itself; the target's name is compared with the Makefile",
    ),
    anywhere("sudo make ", "as above"),
    anywhere(
        "cargo ",
        "builds and tests the project itself; the names of tests and benchmarks are compared",
    ),
    anywhere("sudo -E cargo ", "as above"),
    anywhere(
        "sudo apt",
        "installs the packages: tests/packaging/cycle.sh and tests/packages.rs do, in clean roots",
    ),
    anywhere(
        "sudo systemctl ",
        "needs systemd: tests/packages.rs has the daemon started, restarted and asked by it",
    ),
    anywhere(
        "journalctl ",
        "needs journald: tests/journal.rs and tests/packages.rs read real journals by the same options",
    ),
    anywhere(
        "sudo fwupdatectl doctor",
        "judges a board: tests/cli_doctor.rs, and tests/packages.rs on an installed device",
    ),
    anywhere(
        "sudo fwupdatectl config init",
        "finds a board's partitions and asks: tests/cli_config.rs answers it",
    ),
    on(
        "README.md",
        "export FWUPDATED_HUB_CONNECTION_STRING=",
        "the secret of the reader's hub",
    ),
    on(
        "README.md",
        "fwupdatectl hub invoke ",
        "calls the reader's hub; the tutorials do it with the emulator",
    ),
    on(
        "docs/how-to/make-a-raspberry-pi-image.md",
        "sudo packaging/rpi/make-image.sh ",
        "needs a stock image of 500 MB: tests/rpi_image.rs runs it over a stand-in",
    ),
    on(
        "docs/how-to/make-a-raspberry-pi-image.md",
        "sudo dd ",
        "overwrites a card",
    ),
    on(
        "docs/how-to/make-a-raspberry-pi-image.md",
        "fwupdatectl hub invoke ",
        "calls the reader's hub; the tutorials do it with the emulator",
    ),
    on(
        "docs/how-to/serve-images.md",
        "curl ",
        "asks the reader's server: tests/fetch.rs has servers of each kind",
    ),
    on(
        "docs/how-to/use-the-emulator.md",
        "sudo setcap ",
        "changes the program itself; root needs no capability",
    ),
    on(
        "docs/how-to/choose-when.md",
        "sudo systemd-inhibit ",
        "needs logind: tests/policy.rs has one with the same locks",
    ),
    on(
        "docs/how-to/test-against-a-real-hub.md",
        "export FWUPDATED_CONFORMANCE_HUB='",
        "the secret of the reader's hub",
    ),
];

/// Commands that go on until someone ends them: the reader gives each a terminal of its own, and ends it before starting
/// the same program again.
pub(crate) const GOES_ON: &[&str] = &[
    "iothub-emulator",
    "/usr/share/fwupdated/practice-board",
    "python3 -m http.server",
    "python3 serve.py",
    "device/power-on",
];

/// What a page takes for granted, in shell.
#[derive(Clone, Copy)]
pub(crate) struct Scene {
    /// The page.
    pub(crate) page: &'static str,
    /// What the reader has before the first command.
    pub(crate) before: &'static str,
    /// What the reader sees or does after the commands that begin so.
    pub(crate) after: &'static [(&'static str, &'static str)],
    /// How commands begin that end with an error, as the page says.
    pub(crate) fails: &'static [&'static str],
}

impl Scene {
    /// An empty folder, and nothing to wait for.
    pub(crate) const fn empty(page: &'static str) -> Self {
        Self {
            page,
            before: "",
            after: &[],
            fails: &[],
        }
    }
}

/// The emulator serves.
const EMULATOR: (&str, &str) = ("iothub-emulator", "wait_for test -s hub.json");

/// Pages that take something for granted.
pub(crate) const SCENES: &[Scene] = &[
    Scene {
        before: "head -c 1M /dev/urandom >rootfs.img
            fwupdatectl image keygen --no-password --output release.key",
        ..Scene::empty("README.md")
    },
    Scene {
        after: &[
            EMULATOR,
            ("/usr/share/fwupdated/practice-board", "wait_for status_is .hub.connected"),
            ("python3 -m http.server", "wait_for curl -s http://127.0.0.1:8000/"),
            (
                "FWUPDATED_HUB_CONNECTION_STRING=",
                "cmp -n 16777216 rootfs.img device/slot-b.img
                wait_for status_is '.bootedSlot == \"b\" and .update.stage == \"applyComplete\"'",
            ),
        ],
        ..Scene::empty("docs/tutorial/first-update.md")
    },
    Scene {
        after: &[
            EMULATOR,
            ("python3 serve.py", "wait_for curl -sk https://127.0.0.1:8444/"),
            ("device/power-on", "wait_for status_is .hub.connected"),
        ],
        fails: &["fwupdatectl hub invoke pi-01 --uri https://localhost:8444/rootfs-1.2.0.img.zst --watch"],
        ..Scene::empty("docs/tutorial/firmware-update.md")
    },
    Scene {
        before: "head -c 1M /dev/urandom >rootfs.img; truncate -s 32M rootfs.img
            echo a password >password",
        fails: &["fwupdatectl image verify rootfs-1.4.0.img.zst --key second.key.pub"],
        ..Scene::empty("docs/how-to/sign-images.md")
    },
    Scene {
        before: "fwupdatectl image keygen --no-password --output release.key
            head -c 4M /dev/urandom >rootfs.img
            for version in 1.4.0 1.5.0; do
                printf %s $version | dd of=rootfs.img bs=1 seek=2000000 conv=notrunc status=none
                fwupdatectl image build --rootfs rootfs.img --version $version --compatible board --key release.key \\
                    --output rootfs-$version.img.zst
            done",
        ..Scene::empty("docs/how-to/make-deltas.md")
    },
    Scene {
        before: "fwupdatectl image keygen --no-password --output operator.key
            head -c 1M /dev/urandom | zstd -q -o update.tar.zst",
        ..Scene::empty("docs/how-to/make-a-raspberry-pi-image.md")
    },
    Scene {
        before: "fwupdatectl image keygen --no-password --output key
            head -c 4M /dev/urandom >rootfs.img
            truncate -s 5M rootfs.img
            for version in 2.0.0 3.0.0; do
                fwupdatectl image build --rootfs rootfs.img --version $version --compatible board --key key \\
                    --output rootfs-$version.img.zst
                { head -c 100K /dev/urandom; tail -c +200001 rootfs.img; } >next.img
                truncate -s 5M next.img
                mv next.img rootfs.img
            done
            cp rootfs-2.0.0.img.zst image.zst
            minisign -G -W -p release.pub -s release.key >/dev/null",
        ..Scene::empty("docs/reference/image-format.md")
    },
    Scene {
        before: "echo 'HostName=myhub.azure-devices.net;DeviceId=pi-01;SharedAccessKey=c2VjcmV0' >connection-string
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj '/CN=a CA' -keyout ca.key -out ca.pem
            cp ca.pem intermediate.pem
            head -c 32 /dev/urandom | base64 >group-key",
        after: &[(
            "cat leaf.pem",
            "openssl verify -CAfile ca.pem device.pem
            [ \"$(openssl x509 -in device.pem -noout -pubkey)\" = \"$(openssl pkey -in device.key -pubout)\" ]",
        )],
        ..Scene::empty("docs/how-to/give-a-device-its-identity.md")
    },
    Scene {
        before: "printf 'bootcmd=run fwupdated_boot\\nbootdelay=2\\n' >u-boot-initial-env
            printf '/dev/disk/by-partlabel/env-%s 0x0 0x4000\\n' 1 2 >/etc/fw_env.config",
        ..Scene::empty("docs/how-to/prepare-a-board.md")
    },
    Scene {
        // As the page shows it.
        before: "printf '[hub]\\nkeep_alve = \"2m\"\\n' >/etc/fwupdated/conf.d/10-mine.toml",
        after: &[(
            "fwupdatectl config check",
            "printf '[hub]\\nkeep_alive = \"2m\"\\n' >/etc/fwupdated/conf.d/10-mine.toml",
        )],
        fails: &["fwupdatectl config check"],
        ..Scene::empty("docs/reference/configuration.md")
    },
    Scene {
        before: "an_update_waits",
        after: &[
            ("fwupdatectl approve --now", "wait_for status_is '.bootedSlot == \"a\" and .update.stage == \"applyComplete\"'"),
            ("fwupdatectl approve", "wait_for status_is '(.update.detail // \"\") | contains(\"waiting for someone\")'"),
        ],
        ..Scene::empty("docs/how-to/choose-when.md")
    },
    Scene {
        before: "mkdir /run/dbus; dbus-daemon --system
            an_update_waits",
        after: &[("busctl call", "wait_for status_is '.update.error.code == \"cancelled\"'")],
        ..Scene::empty("docs/reference/d-bus.md")
    },
    Scene {
        before: "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj '/CN=a CA' -keyout my-ca.key \\
            -out my-ca.pem",
        after: &[
            EMULATOR,
            // A device that has been updated, for what follows.
            ("curl --cacert hub/ca.pem $E", "read_page docs/tutorial/first-update.md"),
            ("curl --cacert hub/ca.pem -X POST \"$E/outage", "sleep 11"),
            (
                "call jobs/v2/tag-all |",
                "until [ \"$(call jobs/v2/tag-all | jq -r .status)\" = completed ]; do sleep 0.1; done",
            ),
        ],
        ..Scene::empty("docs/how-to/use-the-emulator.md")
    },
    Scene {
        before: "iothub-emulator --https-port 8443 --state before --ready-file before.json &
            running[iothub-emulator]=$!
            wait_for test -s before.json
            export SSL_CERT_FILE=$PWD/before/ca.pem
            export FWUPDATED_HUB_CONNECTION_STRING=$(jq -r .serviceConnectionString before.json)",
        after: &[EMULATOR],
        ..Scene::empty("docs/how-to/test-against-a-real-hub.md")
    },
];
