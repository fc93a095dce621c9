//! `fwupdatectl`: see [`fwupdated::ctl`].

use std::process::ExitCode;

use clap::Parser;
use fwupdated::ctl::image::{ImageCommand, run};

#[derive(Parser)]
#[command(name = "fwupdatectl", version)]
enum Program {
    /// Make keys and images, sign, check and show them
    #[command(subcommand)]
    Image(ImageCommand),
}

fn main() -> ExitCode {
    let Program::Image(command) = Program::parse();
    run(command)
}
