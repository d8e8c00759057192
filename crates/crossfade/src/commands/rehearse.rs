use std::sync::Arc;

use cutover::rehearse::{self, Job, Last, Report, Until, drill};
use model::{Code, Problem};
use pg::Endpoint;
use plan::{Plan, Secret};
use serde_json::Value;

use crate::report::{self, Output};
use crate::stop::Stop;
use crate::wiring;

/// What is asked of a rehearsal.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) into: Option<String>,
    pub(crate) until: Option<Until>,
    pub(crate) against_target: bool,
}

/// Fills the database `into` from the log, and compares. Exit code 1 unless everything is equal.
pub(crate) async fn run(plan: Arc<Plan>, asked: Asked, output: Output) -> Result<u8, Problem> {
    let into = given(asked.into.clone(), &INTO)?.ok_or_else(nothing_named)?;
    let job = job(&plan, &asked, into, "--into").await?;
    let report = rehearse::run(&job).await?;
    tell(&plan, report, output)
}

/// The same into a database that plays the source, `drill_source` or one beside `into`, and then a cutover and a rollback between the two. Exit code 1 unless everything is equal, and
/// the drill passes; cut off by a signal, that of `stop`.
pub(crate) async fn drill(
    plan: Arc<Plan>,
    asked: Asked,
    drill_source: Option<String>,
    stop: &Stop,
    output: Output,
) -> Result<u8, Problem> {
    let into = given(asked.into.clone(), &INTO)?.ok_or_else(nothing_named)?;
    let given = given(drill_source, &DRILL_SOURCE)?;
    let source = match &given {
        Some(url) => url.clone(),
        None => beside(&into)?,
    };
    // Its own, so that nothing on the servers is taken for another drill's.
    let name = format!("drill_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let own = plan.drill(&name, source.clone(), into, &drill::written()).filter(|plan| plan.derived.is_empty());
    let own = own.ok_or_else(|| several_sources(&plan))?;
    let own = Arc::new(own);
    let comparison = wiring::comparison(&own)
        .await
        .map_err(|problem| Problem { what: format!("--into: {}", problem.what), ..problem })?;
    let job = drill::Job {
        rehearsal: job(&plan, &asked, source, "--drill-source").await?,
        comparison,
        create: given.is_none(),
        processes: Box::new(|plan, stop| Box::pin(super::run::run(plan, None, stop))),
    };
    match drill::run(&job, &stop.token()).await? {
        Some(report) => tell(&plan, report, output),
        None => Ok(stop.exit_code()),
    }
}

async fn job(plan: &Plan, asked: &Asked, url: Secret, option: &str) -> Result<Job, Problem> {
    let against = if asked.against_target { Some(wiring::target(plan)?) } else { None };
    let log = wiring::read_log(plan).await?.ok_or_else(|| {
        let next = "rehearse where `crossfade run` keeps it, once it has run";
        Problem::new(Code::NothingRecorded, format!("the log in {}", plan.state_dir.display()), "it is not there", next)
    })?;
    // The same plan with another target; whoever takes the target from it gets this one.
    let rehearsed = plan.rehearsal(url);
    let into = wiring::target(&rehearsed)
        .map_err(|problem| Problem { what: format!("{option}: {}", problem.what), ..problem })?;
    Ok(Job { plan: Arc::new(rehearsed), into, log, worker: wiring::worker(), until: asked.until, against })
}

/// Puts the times of the last ones beside it, prints it and keeps it.
fn tell(plan: &Plan, mut report: Report, output: Output) -> Result<u8, Problem> {
    if let Some((_, last)) = report::last(plan, "rehearse", |_| true) {
        compare(&mut report, &last);
    }
    if let Some((_, last)) = report::last(plan, "rehearse", |report| report["drill"].is_object()) {
        compare_drill(&mut report, &last["drill"]);
    }
    let document = serde_json::to_value(&report)
        .map_err(|error| Problem::new(Code::Internal, "the report", error.to_string(), "report it"))?;
    if output.json {
        output.print(&document);
    } else {
        output.text(&rehearse::text(&report));
    }
    report::keep(plan, "rehearse", &document);
    Ok(u8::from(!report.is_right()))
}

/// An option that names a database, and the environment variable in its place.
struct Named {
    option: &'static str,
    variable: &'static str,
}

const INTO: Named = Named { option: "--into", variable: "CROSSFADE_INTO" };
const DRILL_SOURCE: Named = Named { option: "--drill-source", variable: "CROSSFADE_DRILL_SOURCE" };

/// Arguments can be read by everybody on the machine, so that a password must not stand there.
fn given(argument: Option<String>, named: &Named) -> Result<Option<Secret>, Problem> {
    let Named { option, variable } = named;
    match argument {
        Some(url) if Endpoint::parse(&url).is_ok_and(|endpoint| endpoint.has_password()) => Err(Problem::new(
            Code::PlanInvalid,
            *option,
            "it holds a password, and everybody on this machine can read the arguments of a process",
            format!("put the URL into the environment variable {variable}, and leave {option} out"),
        )),
        Some(url) => Ok(Some(Secret::new(url))),
        None => Ok(std::env::var(variable).ok().map(Secret::new)),
    }
}

fn nothing_named() -> Problem {
    let next = "name an empty one: --into postgres://…, or the environment variable CROSSFADE_INTO";
    Problem::new(Code::PlanInvalid, "--into", "no database is named", next)
}

fn several_sources(plan: &Plan) -> Problem {
    Problem::new(
        Code::PlanInvalid,
        format!("plan {:?}", plan.name),
        match plan.derived.is_empty() {
            true => "it has several sources: for these there is no way back, and one database cannot play them",
            false => "it has a [[table]]: for what queries give there is no way back, which a drill would go",
        },
        "rehearse without --drill; `crossfade cutover --dry-run` says what is in the way of the cutover",
    )
}

/// The longest name of a database that Postgres does not cut.
const LONGEST: usize = 63;

/// The URL of the database that plays the source, where none is named.
fn beside(into: &Secret) -> Result<Secret, Problem> {
    let endpoint = Endpoint::parse(into.expose())
        .map_err(|problem| Problem { what: format!("--into: {}", problem.what), ..problem })?;
    let name = format!("{}_source", endpoint.database());
    if name.len() > LONGEST {
        let why = format!("no name of a database is as long as {name}, which a drill would make");
        let next = "name a database for it: --drill-source postgres://…";
        return Err(Problem::new(Code::PlanInvalid, "--drill", why, next));
    }
    Ok(Secret::new(pg::beside(into.expose(), &name)))
}

/// Puts the times of the last rehearsal beside those of this one.
fn compare(report: &mut Report, last: &Value) {
    let (Some(at), Some(seconds)) = (last["at"].as_str(), last["seconds"].as_f64()) else { return };
    report.compare_with(Last { at: at.to_owned(), seconds }, |name| seconds_of(last, name));
}

/// And those of the last drill.
fn compare_drill(report: &mut Report, last: &Value) {
    if let Some(drill) = &mut report.drill {
        drill.compare_with(|name| seconds_of(last, name), |name| last[name]["write_gap_ms"].as_i64());
    }
}

fn seconds_of(last: &Value, name: &str) -> Option<f64> {
    let phases = last["phases"].as_array()?;
    phases.iter().find(|phase| phase["phase"] == name)?["seconds"].as_f64()
}
