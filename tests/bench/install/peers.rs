//! The other tools, each as a few lines of shell: how it makes its file, how it installs or downloads it.
//!
//! Every script runs in the scratch folder with `RAW` and `OLD` (the releases as raw images), `FILES` (what the server
//! serves), `URL` (the server), `DEVICE` (the slot to write), `RUNNING` (the slot that holds the old release).

use std::{fs, io, path::Path, process::Command};

use super::{
    measure::{Cost, Row, SAYS, Slot, has, measure, run},
    server::Server,
};

/// A tool.
pub(crate) struct Peer {
    /// Its name and how it is used.
    pub(crate) name: &'static str,
    /// Programs it needs, and what to install for them.
    needs: &'static [&'static str],
    install: &'static str,
    /// Makes its file, once; skipped when `makes` (below `FILES`) is there.
    make: &'static str,
    makes: &'static str,
    /// One run.
    run: &'static str,
    /// Whether the slot holds the image afterwards.
    pub(crate) fills: bool,
    /// What a reader must know.
    pub(crate) note: &'static str,
}

const PLAIN: (&str, &str) = (
    "zstd -q -T0 -9 -f \"$RAW\" -o \"$FILES/new.img.zst\"",
    "new.img.zst",
);

/// Tools that write the whole image into the slot.
pub(crate) const WHOLE: &[Peer] = &[
    Peer {
        name: "dd, raw image, direct",
        needs: &["dd"],
        install: "coreutils",
        make: "",
        makes: "",
        run: "dd if=\"$RAW\" of=\"$DEVICE\" bs=4M oflag=direct conv=fsync status=none",
        fills: true,
        note: "no download, no decompression: the device's own speed",
    },
    Peer {
        name: "curl | zstd | dd, buffered",
        needs: &["curl", "zstd"],
        install: "curl zstd",
        make: PLAIN.0,
        makes: PLAIN.1,
        run: "curl -sSf \"$URL/new.img.zst\" | zstd -dc | dd of=\"$DEVICE\" bs=4M iflag=fullblock conv=fsync status=none",
        fills: true,
        note: "verifies nothing",
    },
    Peer {
        name: "curl | zstd | dd, direct",
        needs: &["curl", "zstd"],
        install: "curl zstd",
        make: PLAIN.0,
        makes: PLAIN.1,
        run: "curl -sSf \"$URL/new.img.zst\" | zstd -dc |
            dd of=\"$DEVICE\" bs=4M iflag=fullblock oflag=direct conv=fsync status=none",
        fills: true,
        note: "verifies nothing",
    },
    Peer {
        name: "RAUC, plain bundle",
        needs: &["rauc", "dbus-run-session", "mksquashfs"],
        install: "rauc dbus squashfs-tools",
        make: RAUC_BUNDLE,
        makes: "new.raucb",
        run: RAUC_INSTALL,
        fills: true,
        note: "from a local file: streaming needs NBD",
    },
    Peer {
        name: "SWUpdate, zstd",
        needs: &["swupdate", "cpio", "zstd"],
        install: "swupdate cpio zstd",
        make: SWU_BUNDLE,
        makes: "new.cms",
        run: SWU_INSTALL,
        fills: true,
        note: "raw handler, installed while it is downloaded",
    },
    Peer {
        name: DECODES,
        needs: &["zstd"],
        install: "zstd",
        make: "",
        makes: "",
        run: "zstd -q -t \"$FILES.img.zst\"",
        fills: false,
        note: "what any program has to do with it; no download, nothing written",
    },
    Peer {
        name: HASHES,
        needs: &["openssl"],
        install: "openssl",
        make: "",
        makes: "",
        run: "openssl dgst -sha256 \"$RAW\"",
        fills: false,
        note: "the same",
    },
];

/// What an installation cannot do without: the floor below its processor time.
pub(crate) const DECODES: &str = "only decoding: zstd -t of fwupdated's image";
/// The same.
pub(crate) const HASHES: &str = "only hashing: openssl sha256 of the raw image";

/// Tools that use what the device has already.
pub(crate) const UPDATES: &[Peer] = &[
    Peer {
        name: "casync, 64 KiB",
        needs: &["casync"],
        install: "casync",
        make: "casync make --store=\"$FILES/new.castr\" \"$FILES/new.caibx\" \"$RAW\" >/dev/null",
        makes: "new.caibx",
        run: "rm -f out; casync extract --store=\"$URL/new.castr\" --seed=\"$OLD\" \"$URL/new.caibx\" out",
        fills: false,
        note: "into a file",
    },
    Peer {
        name: "zchunk",
        needs: &["zck", "zckdl"],
        install: "zchunk",
        make: "zck -o \"$FILES/new.zck\" \"$RAW\"; [ -e \"$FILES/../old.zck\" ] || zck -o \"$FILES/../old.zck\" \"$OLD\"",
        makes: "new.zck",
        run: "rm -f new.zck; zckdl -s \"$FILES/../old.zck\" \"$URL/new.zck\"",
        fills: false,
        note: "several ranges a request; into a file, still compressed",
    },
    Peer {
        name: "bita, 64 KiB",
        needs: &["bita"],
        install: "(cargo install bita)",
        make: "bita compress -f -i \"$RAW\" --avg-chunk-size 64KiB \"$FILES/new-64.cba\"",
        makes: "new-64.cba",
        run: "rm -f out; bita clone -f --seed \"$OLD\" \"$URL/new-64.cba\" out",
        fills: false,
        note: "brotli; into a file",
    },
    Peer {
        name: "bita, 16 KiB",
        needs: &["bita"],
        install: "(cargo install bita)",
        make: "bita compress -f -i \"$RAW\" --avg-chunk-size 16KiB --min-chunk-size 4KiB \"$FILES/new-16.cba\"",
        makes: "new-16.cba",
        run: "rm -f out; bita clone -f --seed \"$OLD\" \"$URL/new-16.cba\" out",
        fills: false,
        note: "brotli; into a file",
    },
];

/// Kept beside the bundles that are signed with it.
const KEYS: &str = r#"
keys=$FILES/../../keys
if [ ! -e "$keys/cert.pem" ]; then
    mkdir -p "$keys"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$keys/key.pem" -out "$keys/cert.pem" -days 3650 -subj /CN=bench \
        -addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=emailProtection 2>/dev/null
fi
cp "$keys/key.pem" "$keys/cert.pem" .
"#;

const RAUC_BUNDLE: &str = r#"
rm -rf bundle "$FILES/new.raucb"; mkdir bundle
cp --sparse=always "$RAW" bundle/rootfs.img
printf '[update]\ncompatible=bench\nversion=2\n[bundle]\nformat=plain\n[image.rootfs]\nfilename=rootfs.img\n' >bundle/manifest.raucm
rauc bundle --cert=cert.pem --key=key.pem --keyring=cert.pem --mksquashfs-args='-comp zstd -Xcompression-level 9' bundle "$FILES/new.raucb"
rm -rf bundle
"#;

const RAUC_INSTALL: &str = r#"
cat >rauc.conf <<END
[system]
compatible=bench
bootloader=noop
mountprefix=$PWD/rauc-mount
statusfile=$PWD/rauc.status
activate-installed=false
[keyring]
path=$PWD/cert.pem
[slot.rootfs.0]
device=$RUNNING
type=raw
bootname=old
[slot.rootfs.1]
device=$DEVICE
type=raw
bootname=new
END
rm -f rauc.status
dbus-run-session -- bash -euc '
    export DBUS_SYSTEM_BUS_ADDRESS=$DBUS_SESSION_BUS_ADDRESS
    rauc --conf=rauc.conf --override-boot-slot=old service >rauc.log 2>&1 & service=$!
    trap "kill $service" EXIT
    until busctl --system status de.pengutronix.rauc >/dev/null 2>&1 || rauc status >/dev/null 2>&1; do
        kill -0 $service; sleep 0.05
    done
    began=$(date +%s%N)
    rauc install "$FILES/new.raucb" || { cat rauc.log; exit 1; }
    echo "wall $(( ($(date +%s%N) - began) / 1000000 ))e-3" >>"$BENCH_SAYS"
    echo "memory $(( $(sed -n "s/^VmHWM: *\([0-9]*\) kB/\1/p" /proc/$service/status) * 1024 ))" >>"$BENCH_SAYS"
    kill $service; trap - EXIT; wait $service || true
'
"#;

/// The archive names the device, so it is put together anew for each run, outside of the measured time: see
/// [`Peer::prepare`].
const SWU_BUNDLE: &str = r#"
[ -e "$FILES/new.img.zst" ] || zstd -q -T0 -9 -f "$RAW" -o "$FILES/new.img.zst"
mkdir -p swu; ln -sf "$FILES/new.img.zst" swu/rootfs.img.zst
cat >swu/sw-description <<END
software = {
    version = "2.0.0";
    hardware-compatibility: [ "1.0" ];
    images: ({ filename = "rootfs.img.zst"; device = "$DEVICE"; type = "raw"; compressed = "zstd";
        installed-directly = true; sha256 = "$(sha256sum <"$FILES/new.img.zst" | cut -d' ' -f1)"; });
}
END
openssl cms -sign -in swu/sw-description -out swu/sw-description.sig -signer cert.pem -inkey key.pem -outform DER \
    -nosmimecap -binary
(cd swu && printf 'sw-description\nsw-description.sig\nrootfs.img.zst\n' | cpio -oL -H crc 2>/dev/null) >"$FILES/new.swu"
"#;

const SWU_INSTALL: &str = r#"
swupdate -H bench:1.0 -k cert.pem -d "-u $URL/new.swu"
"#;

/// What scripts work with.
pub(crate) struct Ground<'a> {
    /// The old and the new release.
    pub(crate) old: &'a Path,
    /// The new release.
    pub(crate) new: &'a Path,
    /// What tools make, for the server to serve.
    pub(crate) files: &'a Path,
    /// Its name at the server.
    pub(crate) folder: &'a str,
    /// Where tools leave their things.
    pub(crate) scratch: &'a Path,
    /// Where tools are that were installed for this only.
    pub(crate) tools: &'a Path,
    /// The server.
    pub(crate) server: &'a Server,
    /// What is written.
    pub(crate) target: &'a Slot,
    /// What runs.
    pub(crate) running: &'a Slot,
}

impl Ground<'_> {
    fn script(&self, text: &str) -> Command {
        let mut path = std::env::var("PATH").unwrap_or_default();
        path.push_str(":/usr/sbin:/sbin:");
        path.push_str(&self.tools.join("bin").to_string_lossy());
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", text])
            .current_dir(self.scratch)
            .env("PATH", path)
            .env("OLD", self.old)
            .env("RAW", self.new)
            .env("FILES", self.files)
            .env("URL", self.server.url(self.folder))
            .env("DEVICE", &self.target.device)
            .env("RUNNING", &self.running.device)
            .env(SAYS, self.scratch.join("says"));
        command
    }
}

impl Peer {
    /// Makes its file; why it cannot take part, if it cannot.
    pub(crate) fn prepare(&self, ground: &Ground<'_>) -> Result<(), String> {
        let tools = ground.tools.join("bin");
        let missing = |program: &&&str| !has(program) && !tools.join(program).is_file();
        if let Some(program) = self.needs.iter().find(missing) {
            return Err(format!(
                "{program} is not installed; install {}",
                self.install
            ));
        }
        run(&mut ground.script(KEYS)).map_err(|error| error.to_string())?;
        if self.make.is_empty() || ground.files.join(self.makes).exists() {
            return Ok(());
        }
        run(&mut ground.script(self.make)).map_err(|error| error.to_string())
    }

    /// One run: `None` when the result is not the image.
    pub(crate) fn measure(&self, ground: &Ground<'_>) -> io::Result<Cost> {
        let out = ground.scratch.join("out");
        let _ = fs::remove_file(&out);
        let cost = measure(
            &mut ground.script(self.run),
            ground.server,
            Some(ground.target),
            ground.scratch,
        )?;
        if self.fills && !ground.target.holds(ground.new)? {
            return Err(io::Error::other(
                "the slot does not hold the image afterwards",
            ));
        }
        let _ = fs::remove_file(&out);
        Ok(cost)
    }

    /// An empty line of the table.
    pub(crate) fn row(&self) -> Row {
        Row {
            tool: self.name.to_owned(),
            note: self.note.to_owned(),
            runs: Vec::new(),
        }
    }
}
