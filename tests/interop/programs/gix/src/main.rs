//! A Git client of a few verbs on gix, for the interop matrix.
use std::num::NonZeroU32;
use std::path::Path;
use std::process::exit;
use std::sync::atomic::AtomicBool;

use gix::progress::Discard;
use gix::remote::fetch::Shallow;
use gix::remote::Direction;

type Outcome = Result<(), Box<dyn std::error::Error>>;
static STOP: AtomicBool = AtomicBool::new(false);

fn clone(url: &str, folder: &str, depth: Option<NonZeroU32>) -> Outcome {
    let mut fetch = gix::prepare_clone(url, Path::new(folder))?;
    if let Some(depth) = depth {
        fetch = fetch.with_shallow(Shallow::DepthAtRemote(depth));
    }
    let (mut checkout, _) = fetch.fetch_then_checkout(Discard, &STOP)?;
    checkout.main_worktree(Discard, &STOP)?;
    Ok(())
}

fn fetch(folder: &str) -> Outcome {
    let repository = gix::open(folder)?;
    let remote = repository.find_fetch_remote(None)?;
    remote
        .connect(Direction::Fetch)?
        .prepare_fetch(Discard, Default::default())?
        .receive(Discard, &STOP)?;
    Ok(())
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words[0].as_str() {
        "clone" => clone(&words[1], &words[2], None),
        "shallow" => clone(&words[1], &words[2], words[3].parse().ok()),
        "fetch" => fetch(&words[1]),
        other => {
            eprintln!("gix has no {other}");
            exit(3)
        }
    };
    if let Err(error) = outcome {
        eprintln!("{error}");
        let mut cause = error.source();
        while let Some(next) = cause {
            eprintln!("  {next}");
            cause = next.source();
        }
        exit(1)
    }
}
