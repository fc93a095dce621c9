//! Key pairs and passwords.

use std::{
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use crate::image::SigningKey;

use super::{CommandError, KeygenArgs, PasswordArgs, output, print};

pub(super) fn keygen(args: &KeygenArgs) -> Result<(), CommandError> {
    let secret = &args.output;
    let mut public = secret.clone().into_os_string();
    public.push(".pub");
    let public = PathBuf::from(public);
    for path in [secret, &public] {
        if path.symlink_metadata().is_ok() {
            return Err(CommandError::Usage(format!(
                "{} exists already; keys are never overwritten, choose another name",
                path.display()
            )));
        }
    }
    let password = new_password(args)?;
    let new = SigningKey::generate(password).map_err(|source| CommandError::SecretKey {
        path: secret.display().to_string(),
        source,
    })?;
    output::create_new(secret, 0o600, &new.secret)?;
    output::create_new(&public, 0o644, &new.public).inspect_err(|_| {
        // A secret key without its public half would only be in the way of the next attempt.
        let _ = fs::remove_file(secret);
    })?;
    let text = format!(
        "Key {id}\n  secret  {secret}  keep it on the build machine, and a copy in a safe place\n  public  {public}  goes to /etc/fwupdated/keys.d/ (or /usr/lib/fwupdated/keys.d/ in the image)\n",
        id = new.id,
        secret = secret.display(),
        public = public.display(),
    );
    print(text.as_bytes())
}

/// Reads a secret key, asking for its password if it needs one and someone is there to answer.
pub(super) fn load(path: &Path, password: &PasswordArgs) -> Result<SigningKey, CommandError> {
    let text = fs::read_to_string(path).map_err(CommandError::file("read the secret key", path))?;
    let failed = |source| CommandError::SecretKey {
        path: path.display().to_string(),
        source,
    };
    let password = if SigningKey::needs_password(&text).map_err(failed)? {
        match &password.password_file {
            Some(file) => Some(read_password(file)?),
            None if io::stdin().is_terminal() => {
                Some(ask(&format!("Password of {}: ", path.display()))?)
            }
            None => None,
        }
    } else {
        None
    };
    SigningKey::parse(&text, password).map_err(failed)
}

fn new_password(args: &KeygenArgs) -> Result<Option<String>, CommandError> {
    if args.no_password {
        return Ok(None);
    }
    if let Some(file) = &args.password.password_file {
        return read_password(file).map(Some);
    }
    if !io::stdin().is_terminal() {
        return Err(CommandError::Usage(
            "there is no terminal to ask for a password; give --password-file FILE, or --no-password for a key that is protected by its file mode alone".to_owned(),
        ));
    }
    let password = ask("Password for the new key: ")?;
    if password.is_empty() {
        return Err(CommandError::Usage(
            "the password is empty; give --no-password if that is meant".to_owned(),
        ));
    }
    if ask("The same once more: ")? != password {
        return Err(CommandError::Usage("the two passwords differ".to_owned()));
    }
    Ok(Some(password))
}

fn read_password(file: &Path) -> Result<String, CommandError> {
    let text =
        fs::read_to_string(file).map_err(CommandError::file("read the password file", file))?;
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() {
        return Err(CommandError::Usage(format!(
            "the first line of {} is empty; it must be the password",
            file.display()
        )));
    }
    Ok(password.to_owned())
}

fn ask(prompt: &str) -> Result<String, CommandError> {
    rpassword::prompt_password(prompt)
        .map_err(CommandError::file("ask on", "the terminal".as_ref()))
}
