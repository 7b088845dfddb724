import sys, time; sys.path.insert(0, sys.argv[1])
import torch, triton, subprocess, re, os, tempfile
from triton.runtime.jit import JITFunction
from triton.compiler import ASTSource
from triton.backends.compiler import GPUTarget
print(triton.__version__)
calls=[]
def record(self,*args,grid,warmup=False,**kw):
    calls.append((self,args,kw))
JITFunction.run=record
from kernels.triton import passes, update
from engine.model import Backbone
def sig(fn,args,kw):
    names=fn.arg_names; s={}; cx={}; attrs={}
    for i,(n,a) in enumerate(zip(names,args)):
        if isinstance(a,torch.Tensor):
            s[n]={torch.float32:'*fp32',torch.uint8:'*u8',torch.int64:'*i64',torch.int32:'*i32'}[a.dtype]
            if a.data_ptr()%16==0: attrs[(i,)]=[['tt.divisibility',16]]
        elif isinstance(a,int):
            if a==1: s[n]='constexpr'; cx[n]=1
            else:
                s[n]='i32'
                if a%16==0: attrs[(i,)]=[['tt.divisibility',16]]
        else: s[n]='fp32'
    for n,v in kw.items(): s[n]='constexpr'; cx[n]=v
    s={n:s[n] for n in names}
    return s,cx,attrs
def compile_(fn,args,kw,arch):
    s,cx,attrs=sig(fn,args,kw)
    src=ASTSource(fn=fn,signature=s,constexprs={(names_index(fn,k),):v for k,v in cx.items()},attrs=attrs)
    return triton.compile(src,target=GPUTarget('cuda',arch,32),options={'num_warps':4})
def names_index(fn,k): return fn.arg_names.index(k)
prec=sys.argv[2]; arch=int(sys.argv[3])
for C,S,Fl,ways,N in ((3,84,48,5,5),(1,28,64,20,20)):
    m=Backbone(C,S,Fl,4,ways); T=4; P=sum(m.sizes)
    x=torch.zeros(T,N,S,S,C).permute(0,1,4,2,3)
    im=passes.Images(passes.Plan.of(m.net._replace(precision=prec),T,N),torch.zeros(T,N,S+2,S+2,C),torch.zeros(T,32 if C==3 else 16),torch.zeros(T,32 if C==3 else 16,32 if C==3 else 16),torch.zeros(T,32 if C==3 else 16))
    r=passes.run(im,torch.zeros(T,P),torch.zeros(2*m.stat_width),torch.zeros(T,N,dtype=torch.int64),None,True)
    passes.tangent(r.kept,torch.zeros(T,P))
seen=set()
tool=os.path.join(os.path.dirname(triton.__file__),'backends/nvidia/bin/cuobjdump')
for fn,args,kw in calls:
    s,cx,a=sig(fn,args,kw); key=(fn.fn.__name__,str(s),str(cx),str(a))
    if key in seen: continue
    seen.add(key)
    t=time.time()
    try: k=compile_(fn,args,kw,arch)
    except Exception as e: print("FAIL",fn.fn.__name__,{n:v for n,v in cx.items()},str(e)[:300]); continue
    with tempfile.NamedTemporaryFile(suffix='.cubin') as f:
        f.write(k.asm['cubin']); f.flush()
        o=subprocess.run([tool,'-sass',f.name],capture_output=True,text=True).stdout
        u=subprocess.run([tool,'-res-usage',f.name],capture_output=True,text=True); u=u.stdout+u.stderr
    print(fn.fn.__name__,{n:v for n,v in cx.items() if n[0].isupper()},re.findall(r'REG:\d+|STACK:\d+|SHARED:\d+|LOCAL:\d+',u),'smem',k.metadata.shared,'hgmma',o.count('HGMMA'),'hmma',o.count('HMMA'),'ldl',o.count('LDL'),'stl',o.count('STL'),f"{time.time()-t:.1f}s",flush=True)
