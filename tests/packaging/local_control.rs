//! Who may what on a device with the package: its bus policy and its polkit actions, held by Debian's `dbus-daemon` and
//! `polkitd`, from outside of the daemon and as users of the container. What the page `docs/reference/d-bus.md` says.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    Inside, MIB, say,
    support::rig::{Device, Rig, noise, run},
};

/// Nobody in particular.
const VISITOR: &str = "visitor";
/// In the group `fwupdated`.
const MEMBER: &str = "member";
/// In no group, but the rule on the page lets it manage updates.
const HELPER: &str = "helper";

const PAGE: &str = include_str!("../../docs/reference/d-bus.md");

/// What acts, by its action in `org.fwupdated1.policy`.
const ACTING: [(&str, &[&str]); 8] = [
    ("install", &["install", "https://images.example/x.img.zst"]),
    ("install", &["install", "/usr/lib/os-release"]),
    ("manage", &["cancel"]),
    ("manage", &["approve"]),
    ("manage", &["defer", "1h"]),
    ("mark", &["rollback"]),
    ("mark", &["mark-good"]),
    ("mark", &["mark-bad", "other"]),
];

const OBJECT: [&str; 3] = [
    "org.fwupdated1",
    "/org/fwupdated1",
    "org.fwupdated1.Manager",
];

/// Makes users and the rule in `root`, which does not run yet.
pub(super) fn prepare(root: &Path) {
    run(Command::new("chroot")
        .arg(root)
        .args(["systemd-sysusers", "--inline"])
        .args([VISITOR, MEMBER, HELPER].map(|name| format!("u {name} -")))
        .arg(format!("m {MEMBER} fwupdated")));
    let (_, rule) = PAGE.split_once("```js\n// /").expect("a rule of polkit");
    let (file, rule) = rule.split_once('\n').unwrap();
    let (rule, _) = rule.split_once("```").unwrap();
    fs::write(root.join(file), rule).unwrap();
}

impl Inside {
    /// A command as one of the users, with the groups that it has.
    fn command_as(&self, user: &str, words: &[&str]) -> Command {
        let other_user = ["--reuid", user, "--regid", user, "--init-groups"];
        self.command(&[&["setpriv"][..], &other_user, words].concat())
    }

    /// How it ends, and what it says on standard output and standard error.
    fn told(&self, user: &str, words: &[&str]) -> (i32, String, String) {
        let output = self.command_as(user, words).output().expect("it starts");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().expect("no signal");
        (code, text(output.stdout), text(output.stderr))
    }

    fn ctl(&self, user: &str, words: &[&str]) -> (i32, String, String) {
        self.told(user, &[&["fwupdatectl"][..], words].concat())
    }

    /// Acts on the bus, where everyone may try; gives what was answered, a refusal included.
    fn call(&self, user: &str, method: &str) -> String {
        let (_, out, err) = self.told(
            user,
            &[&["busctl", "call"][..], &OBJECT, &[method]].concat(),
        );
        out + &err
    }

    fn property(&self, user: &str, name: &str) -> String {
        let words = [&["busctl", "get-property"][..], &OBJECT, &[name]].concat();
        let (code, out, err) = self.told(user, &words);
        assert_eq!(code, 0, "{user}, {name}: {err}");
        out.trim().to_owned()
    }

    /// `user` may not do what these words ask for, and is told why and what to do.
    fn assert_refused(&self, user: &str, action: &str, words: &[&str], why: &str) {
        let (code, out, err) = self.ctl(user, words);
        let told = format!(
            "fwupdatectl: org.fwupdated1.{action} is not for this user: {why}; \
             be root or in the group fwupdated [control-not-allowed]"
        );
        assert_eq!(
            (code, &*out, err.trim()),
            (4, "", &*told),
            "{user}: {words:?}"
        );
    }

    /// `user` may ask for it; the updater itself refuses, by this code.
    fn assert_heard(&self, user: &str, words: &[&str], refusal: &str) {
        let (code, _, err) = self.ctl(user, words);
        let heard = code == 4 && err.trim_end().ends_with(&format!("[{refusal}]"));
        assert!(heard, "{user}: {words:?}: {code}: {err}");
    }
}

/// The device is idle before and after.
pub(super) async fn who_may_what(inside: &Inside, root: &Path, rig: &Rig, device: &mut Device) {
    let running = [&["busctl", "get-property"][..], &OBJECT, &["RunningSlot"]].concat();
    inside.until(&running, "s \"a\"").await;
    everyone_reads(inside, root);
    nobody_else_is_the_daemon(inside);

    // No agent of polkit is there to ask anyone for a password.
    let unasked = "polkit would have to ask someone";
    for (action, words) in ACTING {
        inside.assert_refused(VISITOR, action, words, unasked);
    }
    inside.run(&["systemctl", "--runtime", "--now", "mask", "polkit.service"]);
    let (code, _, err) = inside.ctl(VISITOR, &["cancel"]);
    let without = "org.fwupdated1.manage is not for this user: polkit cannot be asked (";
    assert!(code == 4 && err.contains(without), "{code}: {err}");
    inside.run(&["systemctl", "--runtime", "unmask", "polkit.service"]);

    for user in ["root", MEMBER] {
        inside.assert_heard(user, &["cancel"], "nothing-to-cancel");
        inside.assert_heard(user, &["approve"], "nothing-waits");
        inside.assert_heard(user, &["mark-good"], "nothing-to-confirm");
        inside.assert_heard(user, &["rollback"], "rollback-not-possible");
        // They hear the same on the bus, without polkit's word.
        let answer = inside.call(user, "Cancel");
        assert!(answer.contains("nothing-to-cancel"), "{user}: {answer}");
    }
    let (code, out, err) = inside.ctl(MEMBER, &["mark-bad", "other"]);
    assert!(
        code == 0 && out.contains("slot b is marked bad"),
        "{out}{err}"
    );
    inside.assert_heard(HELPER, &["cancel"], "nothing-to-cancel");
    inside.assert_refused(HELPER, "mark", &["mark-good"], unasked);
    inside.assert_refused(HELPER, "install", ACTING[0].1, unasked);
    say("local control: everyone reads; root, the group and whom polkit lets act");

    an_update_is_theirs_who_may(inside, rig, device).await;
}

fn everyone_reads(inside: &Inside, root: &Path) {
    for user in ["root", MEMBER, VISITOR] {
        let (code, out, err) = inside.ctl(user, &["status"]);
        assert!(
            code == 0 && out.contains("1.0.0 in slot a"),
            "{user}: {out}{err}"
        );
        for words in ["slots", "history"] {
            let (code, out, err) = inside.ctl(user, &[words]);
            assert_eq!(code, 0, "{user}: {words}: {out}{err}");
        }
    }
    let (_, slots, _) = inside.ctl(VISITOR, &["slots"]);
    assert!(slots.contains("running, confirmed"), "{slots}");

    // Programs find what the package describes.
    let packaged = root.join("usr/share/dbus-1/interfaces/org.fwupdated1.xml");
    let packaged = fs::read_to_string(packaged).unwrap();
    let interface = packaged.find("  <interface").unwrap()..packaged.rfind("</node>").unwrap();
    let [service, path, _] = OBJECT;
    let introspect = ["busctl", "introspect", "--xml-interface", service, path];
    let (_, xml, err) = inside.told(VISITOR, &introspect);
    assert!(xml.contains(&packaged[interface]), "{xml}{err}");
    assert_eq!(inside.property(VISITOR, "FirmwareVersion"), "s \"1.0.0\"");
    assert_eq!(inside.property(VISITOR, "HubConnected"), "b true");
    assert_eq!(inside.property(VISITOR, "Busy"), "b false");
    let set = [
        &["busctl", "set-property"][..],
        &OBJECT,
        &["Stage", "s", "x"],
    ]
    .concat();
    assert_ne!(inside.told("root", &set).0, 0, "properties are read-only");
}

fn nobody_else_is_the_daemon(inside: &Inside) {
    let bus = [
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
    ];
    // 4: do not wait for it. Root hears 3: it has an owner.
    let take = ["RequestName", "su", "org.fwupdated1", "4"];
    let take = [&["busctl", "call"][..], &bus, &take].concat();
    for (user, answer) in [
        ("root", "u 3"),
        (VISITOR, "Access denied"),
        (MEMBER, "Access denied"),
    ] {
        let (_, out, err) = inside.told(user, &take);
        assert!((out + &err).contains(answer), "{user}");
    }
}

/// One that root has started is followed by everyone over the bus, and ended by whom polkit lets.
async fn an_update_is_theirs_who_may(inside: &Inside, rig: &Rig, device: &mut Device) {
    let image = rig.build("1.1.0", noise(16 * MIB, 5), &[]);
    let uri = rig.serve(&image);
    let id = "by-root";
    let (code, out, err) = inside.ctl("root", &["install", &uri, "--id", id]);
    assert_eq!(code, 0, "{out}{err}");
    let watch = ["fwupdatectl", "status", "--watch", "--timeout", "2m"];
    let watch = inside
        .command_as(VISITOR, &watch)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stage = [&["busctl", "get-property"][..], &OBJECT, &["Stage"]].concat();
    inside.until(&stage, "s \"downloading\"").await;
    assert_eq!(inside.property(VISITOR, "UpdateId"), format!("s \"{id}\""));
    let (code, _, _) = inside.ctl(VISITOR, &["cancel"]);
    assert_eq!(code, 4);
    assert_eq!(inside.property(VISITOR, "Busy"), "b true");

    let (code, out, err) = inside.ctl(HELPER, &["cancel"]);
    assert_eq!(code, 0, "{out}{err}");
    let section = device.until_final(rig, id).await;
    assert_eq!(section["error"]["code"], "cancelled", "{section:#}");
    let seen = watch.wait_with_output().unwrap();
    let lines = String::from_utf8(seen.stdout).unwrap();
    let code = seen.status.code();
    assert!(
        code == Some(1) && lines.contains("cancelled"),
        "{code:?}: {lines}"
    );
    let (_, out, _) = inside.ctl(VISITOR, &["history"]);
    assert!(out.contains(id) && out.contains("cancelled"), "{out}");
    say("local control: an update of root, watched by a visitor, cancelled by whom polkit lets");
}
